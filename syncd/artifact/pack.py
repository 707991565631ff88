"""Packs: objects of the store that hold encoded segments back to back, and a footer that repeats what each is.

A reader needs no footer: segment table and delta documents say where everything lies. The footer lets a pack be
checked, and a table be written anew, from the pack alone.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Final

from syncd.artifact.fields import Fields, invalid, needs_newer, read_document, write_document
from syncd.artifact.segment import MAX_SEGMENT_BYTES, Row, digest

MAX_PACK_PAYLOAD: Final = 16 * 1024 * 1024
"""Bytes of encoded segments in one pack: a create-only put holds a pack in memory as a whole."""
MAX_PACK_ROWS: Final = 8192
MAX_FOOTER_BYTES: Final = 8 * 1024 * 1024
MAX_BASES: Final = 8
MAX_PARAMETERS: Final = 64
MAX_CODEC: Final = 65535
PACK_NUMBER: Final = 1

HEADER: Final = struct.Struct("<8sII")
TRAILER: Final = struct.Struct("<Q8s")
_MAGIC: Final = b"syncdPCK"
_END: Final = b"syncdEND"
MAX_PACK_BYTES: Final = HEADER.size + MAX_PACK_PAYLOAD + MAX_FOOTER_BYTES + TRAILER.size


@dataclass(frozen=True, slots=True)
class PackRow:
    """What lies at `offset` of a pack: `encoded_length` bytes of `codec` that decode to `decoded_length` bytes."""

    digest: str
    codec: int
    offset: int
    encoded_length: int
    encoded_digest: str
    decoded_length: int
    bases: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()

    def row(self, pack: str) -> Row:
        """The row of a segment table or delta document for the pack with digest `pack`."""
        return Row(
            digest=self.digest,
            codec=self.codec,
            pack=pack,
            offset=self.offset,
            encoded_length=self.encoded_length,
            encoded_digest=self.encoded_digest,
            bases=self.bases,
            parameters=self.parameters,
        )


@dataclass(frozen=True, slots=True)
class Pack:
    """A finished pack: its bytes, their digest (its name in the store), and its rows."""

    data: bytes
    digest: str
    pack_rows: tuple[PackRow, ...]

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows as a segment table has them."""
        return tuple(each.row(self.digest) for each in self.pack_rows)


class PackWriter:
    """Fills packs one after the other; holds at most one pack's payloads, and twice that while it ends one.

    Args:
        copy: a number of 32 bits in the header that readers ignore: equal segments get packs of another name by it.
    """

    def __init__(self, limit: int = MAX_PACK_PAYLOAD, *, copy: int = 0) -> None:
        if not 0 < limit <= MAX_PACK_PAYLOAD:
            raise ValueError(f"a pack holds 1 to {MAX_PACK_PAYLOAD} bytes of segments, not {limit}")
        self.limit = limit
        self._copy = copy
        self._payloads: list[bytes | memoryview] = []
        self._rows: list[PackRow] = []
        self.length = 0

    def add(
        self,
        segment: str,
        codec: int,
        payload: bytes | memoryview,
        decoded_length: int,
        bases: tuple[str, ...] = (),
        parameters: tuple[str, ...] = (),
    ) -> Pack | None:
        """Append the encoding of a segment with digest `segment`; returns the pack that it had to end first, if any.

        A memoryview is kept until its pack ends: the caller leaves the bytes below it alone, or hands in `bytes`.
        """
        ended = None
        if self._rows and (self.length + len(payload) > self.limit or len(self._rows) == MAX_PACK_ROWS):
            ended = self.finish()
        offset = HEADER.size + self.length
        self._rows.append(
            PackRow(segment, codec, offset, len(payload), digest(payload), decoded_length, bases, parameters)
        )
        self._payloads.append(payload)
        self.length += len(payload)
        return ended

    def finish(self) -> Pack | None:
        """End the pack that is being filled; None if it is empty."""
        if not self._rows:
            return None
        rows = tuple(self._rows)
        footer = write_document("pack", {"rows": [_row_fields(each) for each in rows]}, MAX_FOOTER_BYTES)
        header = HEADER.pack(_MAGIC, PACK_NUMBER, self._copy)
        data = b"".join([header, *self._payloads, footer, TRAILER.pack(len(footer), _END)])
        self._payloads, self._rows, self.length = [], [], 0
        return Pack(data, digest(data), rows)


def footer_place(header: bytes, trailer: bytes, length: int) -> tuple[int, int]:
    """Where the footer of a pack of `length` bytes lies (start, length), from its first and last 16 bytes."""
    if (
        len(header) != HEADER.size
        or len(trailer) != TRAILER.size
        or not HEADER.size <= length <= MAX_PACK_BYTES
    ):
        raise invalid("pack", f"{length} bytes are no pack")
    magic, number, _copy = HEADER.unpack(header)
    footer_length, end = TRAILER.unpack(trailer)
    if magic != _MAGIC:
        raise invalid("pack", f"it begins with {magic!r}, not {_MAGIC!r}")
    if number != PACK_NUMBER:
        raise needs_newer("pack", f"pack number {number} is not known here")
    start = length - TRAILER.size - footer_length
    if end != _END or footer_length > MAX_FOOTER_BYTES or start < HEADER.size:
        raise invalid("pack", f"its trailer {trailer!r} is none")
    return int(start), int(footer_length)


def parse_pack_footer(footer: bytes, start: int) -> tuple[PackRow, ...]:
    """The rows of the footer that begins at byte `start` of its pack; they lie one after the other up to there."""
    fields = read_document("pack", footer, MAX_FOOTER_BYTES)
    rows = fields.objects("rows", MAX_PACK_ROWS, read_pack_row)
    at = HEADER.size
    for row in rows:
        if row.offset != at:
            raise invalid("pack", f"a row lies at {row.offset}, the one before it ends at {at}")
        at += row.encoded_length
    if at != start:
        raise invalid("pack", f"its rows end at {at}, its footer begins at {start}")
    return rows


def parse_pack(data: bytes) -> tuple[PackRow, ...]:
    """The rows of a whole pack; digests of payloads are not checked here."""
    start, length = footer_place(data[: HEADER.size], data[-TRAILER.size :], len(data))
    return parse_pack_footer(data[start : start + length], start)


def read_pack_row(fields: Fields) -> PackRow:
    """One row of a footer."""
    decoded = fields.integer("decoded", 1, MAX_SEGMENT_BYTES)
    return PackRow(
        digest=fields.digest("digest"),
        codec=fields.integer("codec", 0, MAX_CODEC),
        offset=fields.integer("offset", HEADER.size, HEADER.size + MAX_PACK_PAYLOAD),
        encoded_length=fields.integer("length", 1, MAX_SEGMENT_BYTES),
        encoded_digest=fields.digest("encoded"),
        decoded_length=decoded,
        bases=fields.digests("bases", MAX_BASES),
        parameters=fields.digests("parameters", MAX_PARAMETERS),
    )


def _row_fields(row: PackRow) -> dict[str, Any]:
    return {
        "digest": row.digest,
        "codec": row.codec,
        "offset": row.offset,
        "length": row.encoded_length,
        "encoded": row.encoded_digest,
        "decoded": row.decoded_length,
        "bases": list(row.bases),
        "parameters": list(row.parameters),
    }
