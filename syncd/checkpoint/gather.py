"""A tensor's values out of the bytes that it spans: any strides into row-major order, conj and neg bits resolved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from syncd.dtypes import ITEM_BYTES

if TYPE_CHECKING:
    from syncd.checkpoint.read import TensorRecord

_REAL_BYTES: Final = {"C32": 2, "C64": 4, "C128": 8}


def span_bytes(record: TensorRecord) -> int:
    """Bytes from element 0 to the end of the last element, as they lie in the storage."""
    if 0 in record.shape:
        return 0
    reach = sum((size - 1) * stride for size, stride in zip(record.shape, record.strides, strict=True))
    return (reach + 1) * ITEM_BYTES[record.dtype]


def gather(record: TensorRecord, span: bytearray) -> bytes:
    """The row-major bytes of the tensor whose storage from element 0 on is `span`."""
    import numpy as np

    if 0 in record.shape:
        return b""
    item = ITEM_BYTES[record.dtype]
    flat = np.frombuffer(span, dtype=np.dtype(f"V{item}") if item > 8 else np.dtype(f"u{item}"))
    strides = tuple(stride * item for stride in record.strides)
    spread = np.lib.stride_tricks.as_strided(flat, record.shape, strides, writeable=False)
    dense = np.array(spread, order="C")  # a copy even where it is contiguous already: signs are flipped in it
    if record.kind != "strided":
        _resolve(record, dense.reshape(-1))
    return dense.tobytes()


def _resolve(record: TensorRecord, flat: Any) -> None:
    """Flip the signs that the conj and neg bits stand for, in place; floats of any kind have theirs on top."""
    import numpy as np

    real_bytes = _REAL_BYTES.get(record.dtype, ITEM_BYTES[record.dtype])
    sign = np.array(1 << (8 * real_bytes - 1), dtype=f"u{real_bytes}")
    parts = flat.view(f"u{real_bytes}")
    if "neg" in record.kind:
        parts ^= sign
    if "conj" in record.kind and record.dtype in _REAL_BYTES:
        parts[1::2] ^= sign
