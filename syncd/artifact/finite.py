"""Are the numbers of a tensor's bytes finite? A publisher warns of what is not, an edge refuses it before its offer.

One exception: a tensor of nothing but zeros and minus infinity is an attention mask, and as good as finite.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Of floats that numpy lacks, or tests slowly: the bits that are all set in an infinity or a NaN, and in nothing else.
_EXPONENTS: Final = {
    "BF16": ("<u2", 0x7F80),
    "F16": ("<u2", 0x7C00),
    "C32": ("<u2", 0x7C00),
    "F8_E5M2": ("u1", 0x7C),
}
_MINUS_INFINITY: Final = {"BF16": 0xFF80, "F16": 0xFC00, "F8_E5M2": 0xFC}
_NATIVE: Final = {"F32": "<f4", "F64": "<f8", "C64": "<f4", "C128": "<f8"}
_CHUNK: Final = 2**18


def count_nonfinite(data: bytes | bytearray | memoryview, dtype: str | None) -> int:
    """How many numbers in `data` (dense, little-endian, of `dtype`) are NaN or infinite; 0 for a mask.

    0 too for integers, opaque bytes (None) and the 8-bit floats that have no infinity. Runs in numpy, by chunks, so
    that the scratch stays under 2 MiB; whole elements are needed.
    """
    if dtype in _EXPONENTS:
        kind, exponent = _EXPONENTS[dtype]
        bits = _array(data, kind)
        wrong = sum(int(((each & exponent) == exponent).sum()) for each in _chunks(bits))
        low = _MINUS_INFINITY.get(dtype)
        return 0 if wrong and low is not None and bool(((bits == low) | (bits == 0)).all()) else wrong
    if dtype in _NATIVE:
        import numpy

        numbers = _array(data, _NATIVE[dtype])
        wrong = sum(int(numpy.count_nonzero(~numpy.isfinite(each))) for each in _chunks(numbers))
        return 0 if wrong and bool(((numbers == -numpy.inf) | (numbers == 0)).all()) else wrong
    return 0


def _array(data: bytes | bytearray | memoryview, kind: str) -> NDArray[Any]:
    import numpy

    return numpy.frombuffer(data, kind)


def _chunks(numbers: NDArray[Any]) -> list[NDArray[Any]]:
    return [numbers[start : start + _CHUNK] for start in range(0, numbers.size, _CHUNK)]
