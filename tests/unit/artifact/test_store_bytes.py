"""Segments in packs and tables: what is verified before a decoder sees it, and what a damaged store gives."""

from __future__ import annotations

import dataclasses
import json
import random
import struct

import pytest

from syncd.artifact import codecs
from syncd.artifact.layout import TensorSource
from syncd.artifact.pack import HEADER, TRAILER, Pack, PackWriter, footer_place, parse_pack, parse_pack_footer
from syncd.artifact.segment import Row, digest, verify_and_decode
from syncd.artifact.table import MAX_CHAIN, SegmentTable
from syncd.errors import DocumentInvalid, NeedsNewerSyncd, SegmentCorrupt, SyncdError
from tests.support.documents import delta_row, small, store


def test_every_segment_of_a_stored_version_comes_back_through_its_row() -> None:
    stored = small()
    for number, row in enumerate(stored.table.rows):
        assert stored.decode(row, number) == stored.segments[number]


def test_any_flipped_bit_of_an_encoding_is_found_before_the_decoder_sees_it() -> None:
    stored = small()
    row = stored.table.rows[-1]
    payload = stored.packs[row.pack].data[row.offset : row.offset + row.encoded_length]
    for at in range(len(payload)):
        flipped = bytearray(payload)
        flipped[at] ^= 1
        out = bytearray(b"\xa5" * len(stored.segments[-1]))
        with pytest.raises(SegmentCorrupt, match="was signed") as caught:
            verify_and_decode(bytes(flipped), row, None, out)
        assert out == b"\xa5" * len(out)
        assert caught.value.where["bytes"] == f"{row.offset}-{row.offset + row.encoded_length - 1}"


def test_a_segment_that_decodes_to_other_bytes_than_signed_is_refused() -> None:
    row = small().table.rows[0]
    wrong = dataclasses.replace(row, digest=digest(b"other"))
    stored = small()
    payload = stored.packs[row.pack].data[row.offset : row.offset + row.encoded_length]
    with pytest.raises(SegmentCorrupt, match="it decoded to"):
        verify_and_decode(payload, wrong, None, bytearray(len(stored.segments[0])))
    with pytest.raises(SegmentCorrupt, match="bytes came"):
        verify_and_decode(payload + b"x", row, None, bytearray(len(stored.segments[0])))


def test_packs_end_before_their_limit_and_their_footers_repeat_the_rows() -> None:
    writer = PackWriter(limit=1000)
    packs: list[Pack] = []
    for number in range(10):
        ended = writer.add(digest(bytes([number])), codecs.RAW, bytes([number]) * 300, 300)
        packs += [ended] if ended else []
    last = writer.finish()
    assert last is not None
    assert writer.finish() is None
    assert [len(each.rows) for each in [*packs, last]] == [3, 3, 3, 1]
    for pack in [*packs, last]:
        assert pack.digest == digest(pack.data)
        start, length = footer_place(pack.data[:16], pack.data[-16:], len(pack.data))
        assert (
            parse_pack_footer(pack.data[start : start + length], start)
            == parse_pack(pack.data)
            == pack.pack_rows
        )
        for row in pack.rows:
            assert digest(pack.data[row.offset : row.offset + row.encoded_length]) == row.encoded_digest


def test_a_raw_segment_of_16_mib_fits_into_a_pack() -> None:
    data = bytes(16 << 20)
    writer = PackWriter()
    assert writer.add(digest(data), codecs.RAW, data, len(data)) is None
    pack = writer.finish()
    assert pack is not None
    assert parse_pack(pack.data)[0].encoded_length == 16 << 20


def test_a_pack_of_a_later_number_or_footer_format_asks_for_a_newer_syncd() -> None:
    data = next(iter(small().packs.values())).data
    with pytest.raises(NeedsNewerSyncd, match="pack number 2"):
        parse_pack(data[:8] + struct.pack("<I", 2) + data[12:])
    with pytest.raises(NeedsNewerSyncd, match="pack/7"):
        parse_pack(data.replace(b"syncd.pack/1", b"syncd.pack/7"))


def test_a_pack_whose_rows_overlap_or_leave_gaps_is_refused() -> None:
    pack = next(iter(small().packs.values()))
    start, length = footer_place(pack.data[:16], pack.data[-16:], len(pack.data))
    fields = json.loads(pack.data[start : start + length])
    for change in (-1, 1):
        fields["rows"][1]["offset"] += change
        footer = json.dumps(fields).encode()
        with pytest.raises(DocumentInvalid, match="ends at"):
            parse_pack(pack.data[:start] + footer + TRAILER.pack(len(footer), b"syncdEND"))
        fields["rows"][1]["offset"] -= change


def test_two_equal_segments_are_stored_once() -> None:
    data = bytes(range(256)) * 4
    stored = store([], [data, data])
    assert len(stored.layout.segments) == 2
    assert stored.table.rows[0] == stored.table.rows[1]
    assert sum(len(pack.rows) for pack in stored.packs.values()) == 1


def test_a_resnet_50_sized_table_costs_at_most_120_bytes_a_segment() -> None:
    rows = [
        Row(
            digest(bytes([number])),
            2,
            digest(bytes([number // 8, 1])),
            16 + number,
            1000,
            digest(bytes([number, 2])),
        )
        for number in range(75)
    ]
    data = SegmentTable(tuple(rows), 75).to_bytes()
    assert len(data) <= 120 * 75
    assert SegmentTable.parse(data, 75).rows == tuple(rows)


def chain(length: int) -> SegmentTable:
    """One segment, and `length` bases behind it, the last one plain."""
    names = [digest(bytes([number])) for number in range(length + 1)]
    rows = [delta_row(names[number], names[number + 1]) for number in range(length)]
    rows.append(delta_row(names[length], None, codec=codecs.RAW))
    return SegmentTable(tuple(rows), 1)


def test_chains_of_up_to_8_bases_are_read_and_longer_or_circular_ones_refused() -> None:
    for length in (1, MAX_CHAIN):
        assert SegmentTable.parse(chain(length).to_bytes(), 1) == chain(length)
    with pytest.raises(DocumentInvalid, match="more than 8"):
        SegmentTable.parse(chain(MAX_CHAIN + 1).to_bytes(), 1)
    a, b = digest(b"a"), digest(b"b")
    with pytest.raises(DocumentInvalid, match="more than 8"):
        SegmentTable.parse(SegmentTable((delta_row(a, b), delta_row(b, a)), 1).to_bytes(), 1)
    with pytest.raises(DocumentInvalid, match="has no row"):
        SegmentTable.parse(SegmentTable((delta_row(a, b),), 1).to_bytes(), 1)
    with pytest.raises(DocumentInvalid, match="raw has a base"):
        SegmentTable.parse(SegmentTable((delta_row(a, a, codec=codecs.RAW),), 1).to_bytes(), 1)


def test_a_table_with_a_codec_of_a_later_syncd_is_read() -> None:
    table = SegmentTable((delta_row(digest(b"a"), None, codec=4711),), 1)
    assert SegmentTable.parse(table.to_bytes(), 1) == table


def _with_header(data: bytes, change: dict[str, object], tail: bytes = b"") -> bytes:
    (length,) = struct.unpack_from("<I", data, 8)
    fields = {**json.loads(data[12 : 12 + length]), **change}
    text = json.dumps(fields).encode()
    return data[:8] + struct.pack("<I", len(text)) + text + data[12 + length :] + tail


def test_an_unknown_column_of_a_table_is_skipped_by_its_width() -> None:
    table = small().table
    data = table.to_bytes()
    (length,) = struct.unpack_from("<I", data, 8)
    columns = json.loads(data[12 : 12 + length])["columns"]
    more = _with_header(
        data, {"columns": [*columns, {"name": "later", "width": 5}]}, bytes(5 * len(table.rows))
    )
    assert SegmentTable.parse(more, len(table.rows)) == table
    for broken in ([*columns, {"name": "later", "width": 5000}], columns[1:], [*columns, columns[0]]):
        with pytest.raises(DocumentInvalid, match="column"):
            SegmentTable.parse(_with_header(data, {"columns": broken}), len(table.rows))


@pytest.mark.parametrize(
    "change", [{"rows": 2**22}, {"packs": 2**22}, {"rows": -1}, {"packs": "1"}, {"rows": 1}]
)
def test_a_table_whose_counts_do_not_fit_its_bytes_is_refused(change: dict[str, object]) -> None:
    table = small().table
    with pytest.raises(DocumentInvalid):
        SegmentTable.parse(_with_header(table.to_bytes(), change), len(table.rows))


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 10), (HEADER.size, 0), (16, 16 * 2**20 + 1), (2**32 - 1, 16)]
)
def test_a_row_outside_every_possible_pack_is_refused(offset: int, length: int) -> None:
    row = delta_row(digest(b"a"), None, codec=0, offset=offset, encoded_length=length)
    with pytest.raises(DocumentInvalid, match="lies at"):
        SegmentTable.parse(SegmentTable((row,), 1).to_bytes(), 1)


def test_a_store_of_random_checkpoints_comes_back_byte_for_byte_from_small_packs() -> None:
    chance = random.Random(11)
    for _ in range(20):
        files = [chance.randbytes(chance.randrange(3000)) for _ in range(chance.randrange(1, 4))]
        tensors = [
            TensorSource(f"t{number}", "F32", (chance.randrange(40),), None, chance.random() < 0.7, (0, 0))
            for number in range(4)
            if len(files[0]) >= 160
        ]
        stored = store(tensors, files, pack_limit=2048 if max(map(len, files)) <= 2048 else 16 << 20)
        data = stored.table.to_bytes()
        table = SegmentTable.parse(data, len(stored.layout.segments))
        found = [stored.decode(row, number) for number, row in enumerate(table.rows)]
        for recipe, file in zip(stored.layout.files, files, strict=True):
            assert (
                b"".join(found[each.segment][each.offset :][: each.length] for each in recipe.spans) == file
            )


def test_a_hostile_payload_with_a_matching_digest_still_raises_only_syncd_errors() -> None:
    chance = random.Random(5)
    for _ in range(500):
        payload = chance.choice([b"\x04\x01", b"\x28\xb5\x2f\xfd", b""]) + chance.randbytes(
            chance.randrange(64)
        )
        row = Row(digest(b""), chance.randrange(5), digest(b""), 16, len(payload), digest(payload))
        with pytest.raises(SyncdError) as caught:
            verify_and_decode(payload, row, "F32", bytearray(64))
        assert isinstance(caught.value, SegmentCorrupt | NeedsNewerSyncd)
