"""The segment table: for each segment of a version its digest, and where its encoding lies. Binary, in columns.

The document: 8 bytes of magic · length of a JSON header (4 bytes, little-endian) · the header · the digests of the
packs (32 bytes each) · the columns, in the header's order. Normative: FORMATS.md, "Segment table".
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from syncd.artifact import codecs
from syncd.artifact.bulk import not_collecting
from syncd.artifact.fields import Fields, invalid, read_document, shown, write_document
from syncd.artifact.pack import HEADER, MAX_PACK_BYTES
from syncd.artifact.segment import MAX_SEGMENT_BYTES, Row

MAX_ROWS: Final = 2**22
MAX_PACKS: Final = 2**22
MAX_TABLE_BYTES: Final = 768 * 1024 * 1024
MAX_HEADER_BYTES: Final = 64 * 1024
MAX_CHAIN: Final = 8
MAX_COLUMNS: Final = 64
MAX_COLUMN_WIDTH: Final = 4096

_MAGIC: Final = b"syncdTBL"
_START: Final = struct.Struct("<8sI")
_DIGEST_BYTES: Final = 32
_NO_BASE: Final = bytes(_DIGEST_BYTES)
_WIDTHS: Final = {
    "digest": (32,),
    "pack": (4,),
    "offset": (4,),
    "length": (4,),
    "codec": (2,),
    "encoded": (32,),
    "base": (0, 32),
}


@dataclass(frozen=True)
class SegmentTable:
    """Rows 0 to `segments` - 1 are the layout's segments in order; further rows are bases or other encodings.

    Several rows may have one digest: a segment that occurs twice, or one with more than one encoding.
    """

    rows: tuple[Row, ...]
    segments: int

    @cached_property
    def by_digest(self) -> dict[str, tuple[Row, ...]]:
        """Digest of decoded bytes → all rows that encode them."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.digest, []).append(row)
        return {key: tuple(rows) for key, rows in found.items()}

    @property
    def packs(self) -> tuple[str, ...]:
        """The digests of the packs that hold the rows, each once, in the order of first use."""
        return tuple(dict.fromkeys(row.pack for row in self.rows))

    def to_bytes(self, *, copy: int = 0) -> bytes:
        """The document; another `copy` gives other bytes that say the same."""
        packs = {pack: number for number, pack in enumerate(self.packs)}
        based = any(row.bases for row in self.rows)
        columns: list[tuple[str, int, bytes]] = [
            ("digest", 32, b"".join(_binary(row.digest) for row in self.rows)),
            ("pack", 4, _integers("I", (packs[row.pack] for row in self.rows))),
            ("offset", 4, _integers("I", (row.offset for row in self.rows))),
            ("length", 4, _integers("I", (row.encoded_length for row in self.rows))),
            ("codec", 2, _integers("H", (row.codec for row in self.rows))),
            ("encoded", 32, b"".join(_binary(row.encoded_digest) for row in self.rows)),
            (
                "base",
                32,
                b"".join(_binary(row.base_digest) if row.base_digest else _NO_BASE for row in self.rows),
            )
            if based
            else ("base", 0, b""),
        ]
        header = {
            "segments": self.segments,
            "rows": len(self.rows),
            "packs": len(packs),
            "columns": [{"name": name, "width": width} for name, width, _data in columns],
            **({"copy": copy} if copy else {}),
        }
        text = write_document("table", header, MAX_HEADER_BYTES)
        parts = [
            _START.pack(_MAGIC, len(text)),
            text,
            *map(_binary, packs),
            *(data for _n, _w, data in columns),
        ]
        return b"".join(parts)

    @classmethod
    @not_collecting()
    def parse(cls, data: bytes, segment_count: int) -> SegmentTable:
        """Read and check the document; `segment_count` is the layout's.

        Raises:
            DocumentInvalid: sizes do not add up, a place is out of bounds, a chain of bases is broken or too long.
            NeedsNewerSyncd: a later format or requirement. A codec that is not known here is none of these.
        """
        fields, at = _read_header(data)
        segments = fields.integer("segments", 0, MAX_ROWS)
        count = fields.integer("rows", segments, MAX_ROWS)
        if segments != segment_count:
            raise fields.wrong("segments", f"the layout has {segment_count}")
        pack_count = fields.integer("packs", 0, MAX_PACKS)
        widths = _read_columns(fields)
        if len(data) != at + pack_count * _DIGEST_BYTES + count * sum(widths.values()):
            raise invalid("table", f"{len(data)} bytes do not hold {count} rows and {pack_count} packs")
        packs = _digests(data, at, pack_count)
        at += pack_count * _DIGEST_BYTES
        starts: dict[str, int] = {}
        for name, width in widths.items():
            starts[name] = at
            at += count * width
        table = cls(tuple(_read_rows(data, starts, widths["base"], count, packs)), segments)
        _check_chains(table)
        return table


def _read_header(data: bytes) -> tuple[Fields, int]:
    if len(data) > MAX_TABLE_BYTES or len(data) < _START.size:
        raise invalid("table", f"{len(data)} bytes are no segment table")
    magic, length = _START.unpack_from(data)
    if magic != _MAGIC:
        raise invalid("table", f"it begins with {magic!r}, not {_MAGIC!r}")
    if length > MAX_HEADER_BYTES or _START.size + length > len(data):
        raise invalid("table", f"its header of {length} bytes does not fit")
    at = _START.size + length
    return read_document("table", data[_START.size : at], MAX_HEADER_BYTES), at


def _read_columns(fields: Fields) -> dict[str, int]:
    """Name → width of each column in order; unknown ones are skipped later by their width."""
    columns = fields.objects(
        "columns",
        MAX_COLUMNS,
        lambda each: (each.text("name", 64), each.integer("width", 0, MAX_COLUMN_WIDTH)),
    )
    widths = dict(columns)
    if len(widths) != len(columns):
        raise invalid("table", "a column stands in it twice")
    for name, allowed in _WIDTHS.items():
        if widths.get(name) not in allowed:
            raise invalid("table", f"column {name} has the width {shown(widths.get(name))}, not {allowed}")
    return widths


def _read_rows(
    data: bytes, starts: dict[str, int], base_width: int, count: int, packs: Sequence[str]
) -> Iterator[Row]:
    def integers(name: str, kind: str) -> tuple[Any, ...]:
        return struct.unpack_from(f"<{count}{kind}", data, starts[name])

    bases = _digests(data, starts["base"], count) if base_width else [None] * count
    none = f"sha256:{_NO_BASE.hex()}"
    columns = zip(
        _digests(data, starts["digest"], count),
        integers("codec", "H"),
        integers("pack", "I"),
        integers("offset", "I"),
        integers("length", "I"),
        _digests(data, starts["encoded"], count),
        bases,
        strict=True,
    )
    for digest, codec, pack, offset, length, encoded, base in columns:
        if pack >= len(packs):
            raise invalid("table", f"a row lies in pack {pack} of {len(packs)}")
        if not 1 <= length <= MAX_SEGMENT_BYTES or offset < HEADER.size or offset + length > MAX_PACK_BYTES:
            raise invalid("table", f"a row of {length} bytes lies at {offset}")
        yield Row(
            digest, codec, packs[pack], offset, length, encoded, () if base in (None, none) else (str(base),)
        )


def _check_chains(table: SegmentTable) -> None:
    """Every base has a row in the table, and at most `MAX_CHAIN` steps lead from a segment to one without a base."""
    depths: dict[str, int] = {}
    bases: dict[str, str] = {}
    for row in table.rows:
        if row.base_digest is None:
            depths[row.digest] = 0
            continue
        if row.codec in codecs.PLAIN:
            raise invalid("table", f"{codecs.name_of(row.codec)} has a base")
        if row.base_digest not in table.by_digest:
            raise invalid("table", f"the base {row.base_digest[:15]} has no row")
        bases.setdefault(row.digest, row.base_digest)
    for start in bases:
        steps, at = 0, start
        while depths.get(at) != 0:
            steps, at = steps + 1, bases[at]
            if steps > MAX_CHAIN:
                raise invalid("table", f"a chain of more than {MAX_CHAIN} bases begins at {start[:15]}")


def _binary(digest: str) -> bytes:
    return bytes.fromhex(digest.removeprefix("sha256:"))


def _integers(kind: str, values: Iterable[int]) -> bytes:
    listed = list(values)
    return struct.pack(f"<{len(listed)}{kind}", *listed)


def _digests(data: bytes, at: int, count: int) -> list[str]:
    text = data[at : at + count * _DIGEST_BYTES].hex()
    return [f"sha256:{text[start : start + 64]}" for start in range(0, len(text), 64)]
