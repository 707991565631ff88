"""planes-zstd.1: the bytes of equal weight of all elements side by side, each plane zstd or raw.

The payload: width P (1 byte) · flags (1 byte, bit 0: the sign was rotated to the low bit) · for each plane, least
significant byte first, kind (1 byte: 0 raw, 1 one zstd frame) and length (4 bytes, little-endian) · the planes.

Suffixes: N elements of the segment, P bytes of an element.
Source: FORMATS.md, "planes-zstd.1". Exponents take few values, mantissas almost all: apart, the first shrink to 1/3.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import numpy as np
import zstandard

from syncd.artifact import codecs
from syncd.artifact.codecs import zstd

WIDTHS: Final[dict[str, tuple[int, bool]]] = {
    "F16": (2, True),
    "BF16": (2, True),
    "C32": (2, True),
    "F32": (4, True),
    "C64": (4, True),
    "F64": (8, True),
    "C128": (8, True),
    "I16": (2, False),
    "U16": (2, False),
    "I32": (4, False),
    "U32": (4, False),
    "I64": (8, False),
    "U64": (8, False),
}
"""Width in bytes, and whether a sign bit on top is rotated down; complex numbers are two floats."""

ROTATED: Final = 1
PLANE_RAW: Final = 0
PLANE_ZSTD: Final = 1
_PLANE: Final = struct.Struct("<BI")
BLOCK: Final = 32 * 1024
"""Elements handled at a time, so that all passes over them stay in the processor's cache."""

# Planes hold few matches: a search so shallow that little more than Huffman coding is left takes a third of level 1's
# time, and on weights 1 % less room (measured: fp32 weights 0.831 of raw, level 1 0.840; Adam's states 1 to 3 % more).
_HUFFMAN: Final = zstandard.ZstdCompressionParameters(
    window_log=17, hash_log=6, chain_log=6, search_log=1, min_match=7, strategy=zstandard.STRATEGY_FAST
)

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def suits(dtype: str | None, length: int) -> bool:
    """Whether a segment of `length` bytes has planes at all."""
    return dtype in WIDTHS and length > 0 and length % WIDTHS[dtype][0] == 0


def encode(data: memoryview, dtype: str) -> bytes | None:
    """The payload for a segment of `dtype`, of N·P bytes; None where no plane shrinks."""
    width, rotated = WIDTHS[dtype]
    planes_PN = split(np.frombuffer(data, f"<u{width}"), rotated)
    head = [bytes([width, ROTATED if rotated else 0])]
    bodies: list[bytes | memoryview] = []
    compressor = zstandard.ZstdCompressor(compression_params=_HUFFMAN)
    shrunk = False
    for plane_N in planes_PN:
        body: bytes | memoryview = plane_N.data
        kind = PLANE_RAW
        if zstd.worth_it(plane_N):
            smaller = compressor.compress(plane_N.data)
            if len(smaller) < plane_N.size:
                body, kind, shrunk = smaller, PLANE_ZSTD, True
        head.append(_PLANE.pack(kind, len(body)))
        bodies.append(body)
    return b"".join([*head, *bodies]) if shrunk else None


def decode(payload: memoryview, out: memoryview) -> None:
    """Write the N·P bytes of the segment into `out`.

    Raises:
        SegmentCorrupt: the payload is malformed or does not hold exactly N elements.
    """
    if len(payload) < 2 or not out:
        raise _corrupt(f"{len(payload)} bytes for a segment of {len(out)}")
    width, flags = payload[0], payload[1]
    if width not in (1, 2, 4, 8) or len(out) % width:
        raise _corrupt(f"elements of {width} bytes in a segment of {len(out)}")
    if flags & ~ROTATED:
        raise _corrupt(f"flags {flags:#04x} are not known")
    planes_PN = _read_planes(payload, width, len(out) // width)
    join(planes_PN, np.frombuffer(out, f"<u{width}"), bool(flags & ROTATED))


def _read_planes(payload: memoryview, width: int, count: int) -> list[Bytes]:
    at = 2 + width * _PLANE.size
    if len(payload) < at:
        raise _corrupt("its header is cut off")
    planes_PN: list[Bytes] = []
    for index in range(width):
        kind, length = _PLANE.unpack_from(payload, 2 + index * _PLANE.size)
        body = payload[at : at + length]
        if (
            len(body) != length
            or kind not in (PLANE_RAW, PLANE_ZSTD)
            or (kind == PLANE_RAW and length != count)
        ):
            raise _corrupt(f"plane {index} of kind {kind} and {length} bytes does not fit")
        at += length
        plain = zstd.decode("planes-zstd.1", body, count) if kind == PLANE_ZSTD else body
        planes_PN.append(np.frombuffer(plain, np.uint8))
    if at != len(payload):
        raise _corrupt(f"{len(payload) - at} bytes follow the last plane")
    return planes_PN


def split(words_N: np.ndarray[Any, Any], rotated: bool) -> Bytes:
    """(N,) unsigned words → (P, N) planes, least significant byte first; a block at a time."""
    width = words_N.dtype.itemsize
    planes_PN = np.empty((width, words_N.size), np.uint8)
    for start in range(0, words_N.size, BLOCK):
        block = words_N[start : start + BLOCK]
        if rotated:
            block = (block << 1) | (block >> (8 * width - 1))
        planes_PN[:, start : start + BLOCK] = block.view(np.uint8).reshape(-1, width).T
    return planes_PN


def join(planes_PN: list[Bytes], words_N: np.ndarray[Any, Any], rotated: bool) -> None:
    """The inverse of `split`, into `words_N`."""
    width = words_N.dtype.itemsize
    for start in range(0, words_N.size, BLOCK):
        block = words_N[start : start + BLOCK]
        rows = block.view(np.uint8).reshape(-1, width)
        for index, plane_N in enumerate(planes_PN):
            rows[:, index] = plane_N[start : start + BLOCK]
        if rotated:
            block[:] = (block >> 1) | (block << (8 * width - 1))


def _corrupt(what: str) -> Exception:
    return codecs.corrupt("planes-zstd.1", what)
