"""Digests of segments, and the one way to decode them: encoded digest, decoder, decoded digest, in this order."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from syncd.artifact import codecs
from syncd.errors import SegmentCorrupt

MAX_SEGMENT_BYTES: Final = 16 * 1024 * 1024
MAX_SEGMENT_ELEMENTS: Final = 4 * 1024 * 1024


def digest(data: bytes | bytearray | memoryview) -> str:
    """`sha256:HEX` of the bytes as they are; releases the GIL."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Row:
    """One encoding of one segment and where it lies.

    `digest` is that of the decoded bytes, `encoded_digest` that of the bytes in the pack; `bases` are digests of the
    decoded bytes that the codec needs, none for a plain codec; `parameters` are digests of decoded parameter blobs.
    """

    digest: str
    codec: int
    pack: str
    offset: int
    encoded_length: int
    encoded_digest: str
    bases: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()

    @property
    def base_digest(self) -> str | None:
        """The base of a row of a segment table, which has at most one."""
        return self.bases[0] if self.bases else None


def check_payload(payload: bytes | bytearray | memoryview, row: Row) -> None:
    """Refuse a payload that is not, byte for byte, what the row says lies in the pack."""
    if len(payload) != row.encoded_length:
        raise _corrupt(row, f"{len(payload)} bytes came, {row.encoded_length} were signed")
    found = digest(payload)
    if found != row.encoded_digest:
        raise _corrupt(row, f"its encoding is {_short(found)}, {_short(row.encoded_digest)} was signed")


def verify_and_decode(
    payload: bytes | bytearray | memoryview,
    row: Row,
    dtype: str | None,
    out: memoryview | bytearray,
    bases: tuple[bytes | memoryview, ...] = (),
) -> None:
    """Fill `out` (writable, of exactly the segment's length) with the decoded segment.

    Args:
        payload: the encoded bytes, not yet trusted.
        row: what was signed of them.
        dtype: the segment's dtype, None for opaque bytes.
        bases: the decoded bytes that `row.bases` names, already verified.
    Raises:
        SegmentCorrupt: encoded or decoded bytes have another digest, or the decoder refused; `out` is meaningless.
        NeedsNewerSyncd: the codec's number is not known here.
    Cost: two SHA-256 passes and the decoder; runs without the GIL but for short moments.
    """
    check_payload(payload, row)
    codecs.decode(row.codec, payload, out, base=bases[0] if bases else None, dtype=dtype)
    found = digest(out)
    if found != row.digest:
        raise _corrupt(row, f"it decoded to {_short(found)}")


def _short(text: str) -> str:
    return text.removeprefix("sha256:")[:8]


def _corrupt(row: Row, what: str) -> SegmentCorrupt:
    return SegmentCorrupt(
        f"segment {_short(row.digest)}: {what}",
        why="the store, a cache before it or the disk changed bytes",
        do="nothing is lost and nothing of it was used; it is fetched again",
        pack=_short(row.pack),
        bytes=f"{row.offset}-{row.offset + row.encoded_length - 1}",
    )
