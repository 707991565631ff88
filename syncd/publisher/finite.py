"""Are all of a segment's numbers finite? A publisher only says so; the gate of every edge refuses what is not.

A version that is not finite is published: training state must never be lost, and refusing is the gate's work.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

# Of a 16-bit or 8-bit float: the bits that are all set in an infinity or a NaN, and in nothing else.
_EXPONENT: Final = {"F16": 0x7C00, "BF16": 0x7F80, "F8_E5M2": 0x7C}
_NUMPY: Final = {
    "F32": np.float32,
    "F64": np.float64,
    "C64": np.float32,
    "C128": np.float64,
    "C32": np.float16,
}
_CHUNK: Final = 2**18


def all_finite(data: bytes | bytearray | memoryview, dtype: str | None) -> bool:
    """Whether no element of `data` is an infinity or a NaN; True for integers, opaque bytes and other 8-bit floats."""
    if dtype in _NUMPY:
        numbers = np.frombuffer(data, dtype=_NUMPY[dtype])
        return all(
            bool(np.isfinite(numbers[start : start + _CHUNK]).all())
            for start in range(0, numbers.size, _CHUNK)
        )
    if dtype in _EXPONENT:
        mask = _EXPONENT[dtype]
        bits: npt.NDArray[Any] = np.frombuffer(data, dtype=np.uint8 if dtype == "F8_E5M2" else np.uint16)
        return not any(
            bool(((bits[start : start + _CHUNK] & mask) == mask).any())
            for start in range(0, bits.size, _CHUNK)
        )
    return True
