"""The registered codecs: names with numbers that are never used again, which encode or decode one segment.

A codec sees one segment at a time, allocates no more than a few times its decoded length, and releases the GIL.
What it is handed was verified against the signed digest of its encoding; it still trusts no number in it.
"""

from __future__ import annotations

from typing import Final

from syncd.errors import NeedsNewerSyncd, SegmentCorrupt

RAW: Final = 0
ZSTD_1: Final = 1
PLANES_ZSTD_1: Final = 2
EXPDIFF_PCO_1: Final = 3

NAMES: Final[dict[int, str]] = {
    RAW: "raw",
    ZSTD_1: "zstd.1",
    PLANES_ZSTD_1: "planes-zstd.1",
    EXPDIFF_PCO_1: "expdiff-pco.1",
}
NUMBERS: Final[dict[str, int]] = {name: number for number, name in NAMES.items()}
PLAIN: Final = frozenset({RAW, ZSTD_1, PLANES_ZSTD_1})
"""Codecs without a base: the baseline, one of which every segment of every version has."""
READABLE: Final = PLAIN
"""What `decode` understands; a registered codec may lack its decoder here."""

Buffer = bytes | bytearray | memoryview


def name_of(number: int) -> str:
    """The codec's name, or its number where it is not registered here."""
    return NAMES.get(number, f"codec {number}")


def encode_plain(data: Buffer, dtype: str | None) -> tuple[int, bytes | memoryview]:
    """Encode a segment without a base: the plain codec that suits its dtype, `raw` where nothing is gained.

    Args:
        data: the segment's bytes, contiguous; stays the caller's. A `raw` payload is a view of it.
        dtype: the segment's dtype, None for opaque bytes.
    Returns: the codec's number and its payload, never longer than `data`.
    Cost: about 3 ms a MiB of fp32; releases the GIL.
    """
    from syncd.artifact.codecs import planes, zstd

    view = memoryview(data).cast("B")
    if not view:
        return RAW, view
    if planes.suits(dtype, len(view)):
        encoded, number = planes.encode(view, dtype or ""), PLANES_ZSTD_1
    else:
        encoded, number = zstd.encode(view), ZSTD_1
    if encoded is None or len(encoded) >= len(view):
        return RAW, view
    return number, encoded


def decode(
    number: int,
    payload: Buffer,
    out: memoryview | bytearray,
    base: Buffer | None = None,
    dtype: str | None = None,
) -> None:
    """Decode `payload` into all of `out`; never writes elsewhere and never less.

    Args:
        number: the codec's number.
        payload: bytes whose digest was checked; what they declare is still checked against `out`.
        out: writable, as long as the segment; meaningless after an error.
        base: the decoded base, for a delta codec.
        dtype: the segment's dtype, for a delta codec; plain codecs carry what they need.
    Raises:
        SegmentCorrupt: the payload is malformed or declares another length.
        NeedsNewerSyncd: the codec is not known here.
    """
    if number not in READABLE:
        raise _unknown(number)
    if base is not None:
        raise corrupt(name_of(number), "it takes no base and was given one")
    view, source = memoryview(out).cast("B"), memoryview(payload).cast("B")
    if number == RAW:
        if len(source) != len(view):
            raise corrupt("raw", f"{len(source)} bytes for a segment of {len(view)}")
        view[:] = source
        return
    from syncd.artifact.codecs import planes, zstd

    if number == ZSTD_1:
        view[:] = zstd.decode("zstd.1", source, len(view))
    else:
        planes.decode(source, view)


def _unknown(number: int) -> NeedsNewerSyncd:
    return NeedsNewerSyncd(
        f"{name_of(number)} encodes a segment that is needed",
        why="a later syncd wrote it and no encoding that is known here is offered",
        do="install a newer syncd here; what serves goes on serving",
        codec=number,
    )


def corrupt(codec: str, what: str) -> SegmentCorrupt:
    """The error of a decoder that refuses its payload."""
    return SegmentCorrupt(
        f"{codec}: {what}",
        why="it was encoded wrongly: its digest is what was signed",
        do="nothing of it was used",
    )
