"""zstd.1: one zstd frame that declares its content size; for opaque bytes and dtypes of one byte."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import zstandard

from syncd.artifact import codecs

LEVEL: Final = 1
SAMPLE_BLOCK: Final = 4096
SAMPLE_BLOCKS: Final = 16
WORTH_BITS: Final = 7.9
"""Bits a byte of a sample: above, zstd would cost time on both sides and shrink nothing that matters."""


def worth_it(data: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> bool:
    """Whether the order-0 entropy of a sample (64 KiB in 16 blocks) says that `data`, (N,) uint8, shrinks."""
    if data.size > SAMPLE_BLOCK * SAMPLE_BLOCKS:
        step = (data.size - SAMPLE_BLOCK) // (SAMPLE_BLOCKS - 1)
        data = np.concatenate([data[at * step : at * step + SAMPLE_BLOCK] for at in range(SAMPLE_BLOCKS)])
    counts = np.bincount(data, minlength=256)
    shares = counts[counts > 0] / max(data.size, 1)
    # Miller and Madow: a sample of n bytes hides about (k - 1) / 2n nats from the estimate.
    hidden = max(shares.size - 1, 0) / (2 * max(data.size, 1) * math.log(2))
    return float(-(shares * np.log2(shares)).sum()) + hidden < WORTH_BITS


def encode(data: memoryview) -> bytes | None:
    """One frame of level 1, or None where a sample says that nothing is gained."""
    if not worth_it(np.frombuffer(data, np.uint8)):
        return None
    return zstandard.ZstdCompressor(level=LEVEL).compress(data)


def decode(codec: str, payload: memoryview, length: int) -> bytes:
    """The content of the one frame that `payload` must be; `length` must be what the frame declares.

    Raises:
        SegmentCorrupt: not one whole frame, or another length; nothing is allocated before the length is compared.
    """
    try:
        declared = zstandard.frame_content_size(payload)
        if declared != length:
            found = f"{declared} bytes" if declared >= 0 else "no size"
            raise codecs.corrupt(codec, f"a frame that declares {found} where {length} are needed")
        data = zstandard.ZstdDecompressor().decompress(payload, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise codecs.corrupt(codec, str(error)) from error
    if len(data) != length:
        raise codecs.corrupt(codec, f"{len(data)} bytes where {length} are needed")
    return data
