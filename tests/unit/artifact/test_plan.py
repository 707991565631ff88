"""Plans: reuse, plain and chains of deltas, the cheapest for each segment; joined ranges; later codecs."""

from __future__ import annotations

import dataclasses
import time

import pytest

from syncd.artifact import codecs
from syncd.artifact.delta import DeltaDocument, DeltaRow, ParameterBlob
from syncd.artifact.layout import Layout, SegmentEntry, TensorSource
from syncd.artifact.plan import Plan, plan, plan_segments, wanted_segments
from syncd.artifact.segment import Row, digest
from syncd.artifact.table import SegmentTable
from syncd.errors import DocumentInvalid, NeedsNewerSyncd
from tests.support.documents import delta_row, small, store

ALL = codecs.READABLE | {codecs.EXPDIFF_PCO_1}


def layout_of(count: int) -> Layout:
    return Layout((), {}, tuple(SegmentEntry("F32", 4096, True) for _ in range(count)), count, ())


def plain_row(name: bytes, length: int = 1000, offset: int = 16, pack: bytes = b"pack") -> Row:
    return Row(digest(name), codecs.RAW, digest(pack), offset, length, digest(b"e" + name))


def delta(a: int, b: int, *rows: Row, blobs: tuple[ParameterBlob, ...] = ()) -> DeltaDocument:
    return DeltaDocument("m", a, b, tuple(DeltaRow(row, 4096, (a,)) for row in rows), blobs)


def fetched(result: Plan) -> list[Row]:
    return [each.row for each in result.planned]


def test_the_model_face_takes_no_training_state_and_the_files_face_everything() -> None:
    stored = small()
    side = wanted_segments(stored.layout, "model", (1,))
    assert set(range(stored.layout.model_segments)) < set(side)
    assert len(side) == stored.layout.model_segments + 1
    assert wanted_segments(stored.layout, "files") == tuple(range(len(stored.layout.segments)))


def test_what_is_there_is_not_fetched() -> None:
    stored = small()
    everything = plan(stored.layout, stored.table, set(), faces="files")
    assert everything.wire_bytes == sum(row.encoded_length for row in set(stored.table.rows))
    have = {stored.table.rows[0].digest, stored.table.rows[2].digest}
    some = plan(stored.layout, stored.table, have, faces="files")
    assert some.reuse == (0, 2)
    assert set(some.plain) == set(range(len(stored.layout.segments))) - {0, 2}
    assert (
        plan(stored.layout, stored.table, {row.digest for row in stored.table.rows}, faces="files").fetch
        == ()
    )


def test_a_plan_followed_to_the_letter_gives_the_files_back() -> None:
    stored = small()
    found: dict[int, bytes] = {}
    for fetch in plan(stored.layout, stored.table, set(), faces="files").fetch:
        blob = stored.packs[fetch.pack].data[fetch.start : fetch.start + fetch.length]
        at = 0
        for numbers, row in fetch.segments:
            assert row.offset - fetch.start == at
            at += row.encoded_length
            assert digest(blob[row.offset - fetch.start : at]) == row.encoded_digest
            found |= {number: stored.decode(row, number) for number in numbers}
        assert at == fetch.length
    assert [found[number] for number in range(len(found))] == stored.segments


def test_neighbours_are_joined_up_to_the_bound_and_equal_segments_fetched_once() -> None:
    rows = [plain_row(bytes([number]), 1000, 16 + 1000 * number) for number in range(5)]
    table = SegmentTable((*rows, rows[0]), 6)
    result = plan(layout_of(6), table, set(), bound=2500)
    assert [(each.start, each.length) for each in result.fetch] == [(16, 2000), (2016, 2000), (4016, 1000)]
    assert result.fetch[0].segments[0].segments == (0, 5)
    assert result.wire_bytes == 5000
    apart = plan_segments(layout_of(6), table, [0, 2, 4])
    assert [each.start for each in apart.fetch] == [16, 2016, 4016]


def test_a_cheaper_delta_is_taken_and_a_dearer_one_is_not() -> None:
    table = SegmentTable((plain_row(b"B"),), 1)
    for length, kind in ((999, "delta"), (1001, "plain")):
        document = delta(1, 2, delta_row(digest(b"B"), digest(b"A"), length))
        result = plan(layout_of(1), table, {digest(b"A")}, [document], readable=ALL)
        assert getattr(result, kind) == (0,)
        assert result.wire_bytes == min(length, 1000)


def test_an_edge_several_versions_behind_takes_the_chain_when_it_is_cheaper() -> None:
    table = SegmentTable((plain_row(b"C"),), 1)
    first = delta(1, 2, delta_row(digest(b"B"), digest(b"A"), 300, offset=16))
    second = delta(2, 3, delta_row(digest(b"C"), digest(b"B"), 300, offset=316))
    result = plan(layout_of(1), table, {digest(b"A")}, [first, second], readable=ALL)
    assert result.delta == (0,)
    assert result.wire_bytes == 600
    assert [each.segments for each in result.planned] == [(), (0,)]
    assert plan(layout_of(1), table, set(), [first, second], readable=ALL).plain == (0,)


def test_chains_longer_than_8_and_circles_are_not_followed() -> None:
    table = SegmentTable((plain_row(b"9"),), 1)
    documents = [
        delta(number + 1, number + 2, delta_row(digest(b"%d" % (number + 1)), digest(b"%d" % number), 10))
        for number in range(9)
    ]
    assert plan(layout_of(1), table, {digest(b"0")}, documents, readable=ALL).plain == (0,)
    assert plan(layout_of(1), table, {digest(b"1")}, documents, readable=ALL).delta == (0,)
    circle = [delta(1, 2, delta_row(digest(b"9"), digest(b"x"), 1), delta_row(digest(b"x"), digest(b"9"), 1))]
    assert plan(layout_of(1), table, set(), circle, readable=ALL).plain == (0,)


def test_shared_parameter_blobs_are_fetched_once_and_count() -> None:
    table = SegmentTable((plain_row(b"B"), plain_row(b"D", offset=1016)), 2)
    blob = delta_row(digest(b"blob"), None, 400, codec=codecs.ZSTD_1, offset=5000)
    rows = [
        delta_row(digest(b"B"), digest(b"A"), 500, parameters=(blob.digest,), offset=16),
        delta_row(digest(b"D"), digest(b"A"), 500, parameters=(blob.digest,), offset=516),
    ]
    document = delta(1, 2, *rows, blobs=(ParameterBlob(blob, 640),))
    result = plan(layout_of(2), table, {digest(b"A")}, [document], readable=ALL)
    assert result.delta == (0, 1)
    assert fetched(result).count(blob) == 1
    assert result.wire_bytes == 1400


def test_a_delta_of_a_codec_that_is_not_known_is_an_option_not_taken() -> None:
    table = SegmentTable((plain_row(b"B"),), 1)
    document = delta(1, 2, delta_row(digest(b"B"), digest(b"A"), 1))
    result = plan(layout_of(1), table, {digest(b"A")}, [document])
    assert result.plain == (0,)


def test_a_segment_with_only_later_codecs_needs_a_newer_syncd_unless_it_is_there() -> None:
    row = plain_row(b"B")
    later = dataclasses.replace(row, codec=4711, offset=5000, encoded_length=1)
    with pytest.raises(NeedsNewerSyncd, match="codec 4711"):
        plan(layout_of(1), SegmentTable((later,), 1), set())
    assert plan(layout_of(1), SegmentTable((later,), 1), {row.digest}).reuse == (0,)
    assert fetched(plan(layout_of(1), SegmentTable((later, row), 1), set())) == [row]


def test_a_table_with_bases_is_followed_when_its_codec_is_known() -> None:
    base = plain_row(b"A", 800)
    row = delta_row(digest(b"B"), digest(b"A"), 100)
    table = SegmentTable((row, base), 1)
    result = plan(layout_of(1), table, set(), readable=ALL)
    assert set(fetched(result)) == {row, base}
    with pytest.raises(NeedsNewerSyncd, match=r"expdiff-pco\.1"):
        plan(layout_of(1), table, set())


def test_a_delta_row_of_another_length_than_the_segment_is_refused() -> None:
    document = delta(1, 2, delta_row(digest(b"B"), digest(b"A"), 1))
    wrong = dataclasses.replace(document, rows=(dataclasses.replace(document.rows[0], decoded_length=5),))
    with pytest.raises(DocumentInvalid, match="decodes to 5 bytes"):
        plan(layout_of(1), SegmentTable((plain_row(b"B"),), 1), {digest(b"A")}, [wrong], readable=ALL)


def test_one_digest_for_segments_of_different_lengths_is_refused() -> None:
    layout = dataclasses.replace(
        layout_of(2), segments=(SegmentEntry("F32", 8, True), SegmentEntry("F32", 4, True))
    )
    table = SegmentTable((plain_row(b"A"), plain_row(b"A")), 2)
    with pytest.raises(DocumentInvalid, match="one digest and different lengths"):
        plan(layout, table, set())


def test_a_head_only_update_fetches_the_head_alone() -> None:
    body = bytes(4 << 20)
    tensors = [
        TensorSource("body", "F32", (1 << 20,), None, True, (0, 0)),
        TensorSource("head", "F32", (1000,), None, True, (0, 4 << 20)),
    ]
    old = store(tensors, [body + b"1" * 4000])
    new = store(tensors, [body + b"2" * 4000])
    assert new.layout == old.layout
    result = plan(new.layout, new.table, {row.digest for row in old.table.rows})
    assert result.reuse == (0,)
    assert result.wire_bytes <= 4000


def test_half_a_terabyte_of_segments_is_planned_in_seconds() -> None:
    count = 32_000
    rows = tuple(
        Row(
            digest(b"%d" % number),
            codecs.RAW,
            digest(b"%d" % (number // 16)),
            16 + 100 * (number % 16),
            100,
            "e",
        )
        for number in range(count)
    )
    start = time.process_time()
    result = plan(layout_of(count), SegmentTable(rows, count), set())
    assert time.process_time() - start < 3
    assert len(result.fetch) == count // 16
