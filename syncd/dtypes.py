"""The names of dtypes in syncd's documents and their sizes: safetensors' names, and three that it lacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

ITEM_BYTES: Final[dict[str, int]] = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E4M3FNUZ": 1,
    "F8_E5M2FNUZ": 1,
    "F8_E8M0": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "C32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
    "C64": 8,
    "C128": 16,
}


def element_count(shape: Sequence[int]) -> int:
    """The number of elements of a tensor of `shape`; 1 for a scalar, 0 for an empty tensor."""
    count = 1
    for size in shape:
        count *= size
    return count


def tensor_bytes(dtype: str, shape: Sequence[int]) -> int:
    """The bytes of a dense tensor; KeyError for a dtype that is not in `ITEM_BYTES`."""
    return ITEM_BYTES[dtype] * element_count(shape)
