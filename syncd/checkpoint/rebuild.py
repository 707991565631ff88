"""The names that the unpickler understands: each turns its arguments into an inert value, none is looked up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from syncd.checkpoint.values import STORAGE_DTYPES, TORCH_DTYPES, Malformed, Name, Record, Storage, Tensor

_PLAIN_TYPES: Final = {
    "torch.Tensor",
    "torch._tensor.Tensor",
    "torch.nn.parameter.Parameter",
    "torch.nn.parameter.Buffer",
}


def storage_type(kind: Any) -> tuple[str, int]:
    """(dtype, bytes an element) of a storage class such as `torch.FloatStorage`; Malformed for any other."""
    if isinstance(kind, Name) and kind.module in ("torch", "torch.storage", "torch.cuda"):
        found = STORAGE_DTYPES.get(kind.name.removesuffix("Storage"))
        if found:
            return found
    raise Malformed(f"a storage of unknown type {kind if isinstance(kind, Name) else type(kind).__name__}")


def torch_dtype(kind: Any) -> tuple[str, int]:
    """(dtype, bytes an element) of `torch.NAME`; a dtype that is not known has size 0."""
    if not isinstance(kind, Name) or kind.module != "torch":
        raise Malformed("a dtype that is not torch's")
    return TORCH_DTYPES.get(kind.name, (kind.name, 0))


def _sizes(value: Any) -> tuple[int, ...]:
    if type(value) is list and len(value) <= 64:
        value = tuple(value)
    if type(value) is not tuple or len(value) > 64:
        raise Malformed("a tensor's shape or strides are not a short tuple")
    for size in value:
        if type(size) is not int:
            raise Malformed("a tensor's shape or strides are not integers")
    return value


class StorageView:
    """A storage with the dtype under which the pickle names it, and the part of it in elements that is meant."""

    __slots__ = ("dtype", "start", "storage")

    def __init__(self, storage: Storage, dtype: str, start: int) -> None:
        self.storage = storage
        self.dtype = dtype
        self.start = start


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, dtype: str | None = None) -> Tensor:
    if not isinstance(storage, StorageView) or type(offset) is not int:
        raise Malformed("a tensor without a storage or an offset")
    return Tensor(
        storage.storage, dtype or storage.dtype, storage.start + offset, _sizes(size), _sizes(stride)
    )


def _rebuild_tensor(args: tuple[Any, ...]) -> Any:
    return _tensor(*args[:4])


def _rebuild_tensor_v2(args: tuple[Any, ...]) -> Any:
    tensor = _tensor(*args[:4])
    _mark(tensor, args[6] if len(args) > 6 else None)
    return tensor


def _rebuild_tensor_v3(args: tuple[Any, ...]) -> Any:
    dtype, item_bytes = torch_dtype(args[6])
    tensor = _tensor(args[0], args[1], args[2], args[3], dtype)
    if not item_bytes:
        tensor.kind = "unknown-dtype"
    _mark(tensor, args[7] if len(args) > 7 else None)
    return tensor


def _mark(tensor: Tensor, metadata: Any) -> None:
    """Honour the conj and neg bits: the stored bytes are then not the tensor's values."""
    if isinstance(metadata, dict) and tensor.kind == "strided":
        conj, neg = metadata.get("conj") is True, metadata.get("neg") is True
        tensor.kind = "conj+neg" if conj and neg else "conj" if conj else "neg" if neg else "strided"


def _rebuild_parameter(args: tuple[Any, ...]) -> Any:
    return args[0]


def _rebuild_from_type_v2(args: tuple[Any, ...]) -> Any:
    function, kind, inner, state = args[:4]
    within = isinstance(function, Name) and function.name != "_rebuild_from_type_v2"  # torch nests it never
    value = rebuild(function, inner) if within and isinstance(inner, tuple) else None
    if isinstance(value, Tensor) and str(kind) not in _PLAIN_TYPES:
        value.kind = "wrapper"
    if isinstance(value, Tensor) and value.kind == "wrapper" and value.storage is None:
        # torchao, DTensor: the tensors within lie in the state, and must be found there.
        record = Record(kind, (value,), "wrapper")
        record.state = state
        return record
    return value if value is not None else Record(kind, args, "wrapper")


def _rebuild_qtensor(args: tuple[Any, ...]) -> Any:
    tensor = _tensor(*args[:4])
    tensor.kind = "quantized"
    return tensor


def _rebuild_meta(args: tuple[Any, ...]) -> Any:
    return Tensor(None, torch_dtype(args[0])[0], 0, _sizes(args[1]), _sizes(args[2]), "meta")


def _rebuild_wrapper(args: tuple[Any, ...]) -> Any:
    return Tensor(None, torch_dtype(args[1])[0], 0, _sizes(args[2]), (), "wrapper")


def _size(args: tuple[Any, ...]) -> Any:
    return _sizes(args[0]) if args else ()


def _empty_dict(args: tuple[Any, ...]) -> Any:
    return {}


def _default_dict(args: tuple[Any, ...]) -> Any:
    # defaultdict(factory) and defaultdict(factory, dict): the dict itself, never a copy.
    return next((value for value in args if isinstance(value, dict)), {})


REBUILDERS: Final[dict[tuple[str, str], Callable[[tuple[Any, ...]], Any]]] = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type_v2,
    ("torch._utils", "_rebuild_qtensor"): _rebuild_qtensor,
    ("torch._utils", "_rebuild_meta_tensor_no_storage"): _rebuild_meta,
    ("torch._utils", "_rebuild_wrapper_subclass"): _rebuild_wrapper,
    ("torch", "Size"): _size,
    ("collections", "defaultdict"): _default_dict,
    ("collections", "Counter"): _default_dict,
}
_ORDERED_DICT: Final = ("collections", "OrderedDict")


def rebuild(name: Any, args: Any) -> Any:
    """What calling `name` with `args` would mean, as an inert value; a name that is not understood gives a Record.

    Raises:
        Malformed: an understood name has arguments that torch would not have written.
    """
    if not isinstance(args, tuple):
        args = (args,)
    if not isinstance(name, Name):
        return Record(name, args)
    key = (name.module, name.name)
    if key == _ORDERED_DICT and not args:
        return {}
    rebuilder = REBUILDERS.get(key)
    if rebuilder is None:
        return Record(name, args, _stands_for(name))
    try:
        return rebuilder(args)
    except (IndexError, TypeError, ValueError) as error:
        raise Malformed(f"{name} has arguments that torch does not write: {error}") from None


def _stands_for(name: Name) -> str:
    """The kind of tensor that a rebuilding name of torch's stands for, if it is not in the list above."""
    if name.module in ("torch._utils", "torch._tensor") and name.name.startswith("_rebuild_"):
        return "sparse" if "sparse" in name.name else "wrapper"
    return ""
