"""What the unpickler makes of a pickle: plain Python values and these inert ones, never an object of a named class."""

from __future__ import annotations

from typing import Any, Final


class Incomplete(Exception):
    """The bytes end, or were not written, before what they promise: training may still be at it."""


class Malformed(Exception):
    """The bytes break their format; the kind decides whether that means a torn write or an attack."""


class Hostile(Exception):
    """The bytes break a bound that no honest checkpoint breaks."""


class Unsupported(Exception):
    """A kind or a feature that is known and not read."""


class Name:
    """A global that the pickle mentions: two strings, never looked up."""

    __slots__ = ("module", "name")

    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.name = name

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Record:
    """What the pickle said about an object: what would have been called, with what, and what was put in.

    `tensor_kind` is set where the object stands for a tensor whose parts lie within (sparse, wrapper).
    """

    __slots__ = ("args", "items", "name", "pairs", "state", "tensor_kind")

    def __init__(self, name: Any, args: Any = (), tensor_kind: str = "") -> None:
        self.name = name
        self.tensor_kind = tensor_kind
        self.args = args
        self.state: Any = None
        self.items: list[Any] = []
        self.pairs: list[tuple[Any, Any]] = []


class Blob:
    """A string or byte string too long to keep: only its length is remembered."""

    __slots__ = ("length",)

    def __init__(self, length: int) -> None:
        self.length = length


class Storage:
    """A run of bytes that tensors lie in.

    `first` and `bytes` are set by the format once it knows where the storage lies in the file; `view` is the part
    (element offset, elements) that a legacy file gives a name of its own.
    """

    __slots__ = ("bytes", "elements", "first", "item_bytes", "key")

    def __init__(self, key: str, item_bytes: int, elements: int) -> None:
        self.key = key
        self.item_bytes = item_bytes
        self.elements = elements
        self.bytes = item_bytes * elements
        self.first = -1


class Tensor:
    """A tensor as the pickle describes it; offset and strides in elements of `dtype`."""

    __slots__ = ("dtype", "kind", "offset", "shape", "storage", "strides")

    def __init__(
        self,
        storage: Storage | None,
        dtype: str,
        offset: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        kind: str = "strided",
    ) -> None:
        self.storage = storage
        self.dtype = dtype
        self.offset = offset
        self.shape = shape
        self.strides = strides
        self.kind = kind


# torch's storage class, without "Storage" → (name in syncd.dtypes, or torch's own name in lower case; bytes an element)
STORAGE_DTYPES: Final[dict[str, tuple[str, int]]] = {
    "Float": ("F32", 4),
    "Double": ("F64", 8),
    "Half": ("F16", 2),
    "BFloat16": ("BF16", 2),
    "Long": ("I64", 8),
    "Int": ("I32", 4),
    "Short": ("I16", 2),
    "Char": ("I8", 1),
    "Byte": ("U8", 1),
    "Bool": ("BOOL", 1),
    "ComplexFloat": ("C64", 8),
    "ComplexDouble": ("C128", 16),
    "QInt8": ("qint8", 1),
    "QUInt8": ("quint8", 1),
    "QInt32": ("qint32", 4),
    "QUInt4x2": ("quint4x2", 1),
    "QUInt2x4": ("quint2x4", 1),
    "Untyped": ("U8", 1),
}

# torch.NAME as `_rebuild_tensor_v3` and its kin mention it → the same pair; a lower-case name cannot be served.
TORCH_DTYPES: Final[dict[str, tuple[str, int]]] = {
    "float32": ("F32", 4),
    "float": ("F32", 4),
    "float64": ("F64", 8),
    "double": ("F64", 8),
    "float16": ("F16", 2),
    "half": ("F16", 2),
    "bfloat16": ("BF16", 2),
    "int64": ("I64", 8),
    "long": ("I64", 8),
    "int32": ("I32", 4),
    "int": ("I32", 4),
    "int16": ("I16", 2),
    "short": ("I16", 2),
    "int8": ("I8", 1),
    "uint8": ("U8", 1),
    "bool": ("BOOL", 1),
    "uint16": ("U16", 2),
    "uint32": ("U32", 4),
    "uint64": ("U64", 8),
    "complex32": ("C32", 4),
    "chalf": ("C32", 4),
    "complex64": ("C64", 8),
    "cfloat": ("C64", 8),
    "complex128": ("C128", 16),
    "cdouble": ("C128", 16),
    "float8_e4m3fn": ("F8_E4M3", 1),
    "float8_e5m2": ("F8_E5M2", 1),
    "float8_e4m3fnuz": ("F8_E4M3FNUZ", 1),
    "float8_e5m2fnuz": ("F8_E5M2FNUZ", 1),
    "float8_e8m0fnu": ("F8_E8M0", 1),
    "float4_e2m1fn_x2": ("float4_e2m1fn_x2", 1),
    "bits1x8": ("bits1x8", 1),
    "bits2x4": ("bits2x4", 1),
    "bits4x2": ("bits4x2", 1),
    "bits8": ("bits8", 1),
    "bits16": ("bits16", 2),
    "qint8": ("qint8", 1),
    "quint8": ("quint8", 1),
    "qint32": ("qint32", 4),
    "quint4x2": ("quint4x2", 1),
    "quint2x4": ("quint2x4", 1),
}
