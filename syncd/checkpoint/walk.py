"""From an unpickled value to tables: tensors with where their bytes lie, the groups they form, a few scalars."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, Final

from syncd.checkpoint.values import Hostile, Record, Tensor
from syncd.dtypes import ITEM_BYTES, element_count

MAX_DEPTH: Final = 64
MAX_NAME_BYTES: Final = 1024
MAX_TENSORS: Final = 500_000
MAX_KEY_BYTES: Final = 32 << 20
MAX_EXPANDED: Final = 1 << 31
MAX_EXPANDED_BYTES: Final = 64 << 20
MAX_SCALARS: Final = 64
MAX_SIZE: Final = 1 << 62
_CONTAINERS: Final = (dict, list, tuple, Record)

Path = tuple[str | int, ...]


class Tables:
    """What a format found; `as_json` is what crosses from the child process to its parent.

    tensors: [path, dtype, shape, strides, offset in the file, storage's first byte, storage's bytes, kind]
    groups: [path, names, tensor indices, is a module, has string keys only]
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.proof = ""
        self.tensors: list[list[Any]] = []
        self.groups: list[list[Any]] = []
        self.scalars: dict[str, Any] = {}
        self.globals: list[str] = []
        self.notes: list[str] = []
        self.checks: list[tuple[int, int, int]] = []  # first byte, bytes, CRC32: verified by the parent
        self._rows: dict[tuple[Any, ...], int] = {}
        self._key_bytes = 0

    def as_json(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def add_tensor(self, path: Path, tensor: Tensor, item_bytes: int) -> int:
        """The index of the tensor's row; tensors that lie in the same bytes in the same way share one."""
        storage = tensor.storage
        first, length = (storage.first, storage.bytes) if storage else (-1, 0)
        offset = first + tensor.offset * item_bytes if storage else -1
        identity = (first, offset, tensor.dtype, tensor.shape, tensor.strides, tensor.kind)
        known = self._rows.get(identity) if storage else None
        if known is not None:
            return known
        if len(self.tensors) >= MAX_TENSORS:
            raise Hostile(f"more than {MAX_TENSORS} tensors")
        self._rows[identity] = index = len(self.tensors)
        row = [path, tensor.dtype, tensor.shape, tensor.strides, offset, first, length, tensor.kind]
        self.tensors.append(row)
        return index

    def note_unnamed(self, count: int) -> None:
        """Say that `count` tensors travel only as bytes, for their names."""
        if count:
            self.notes.append(f"{count} tensors have names that are too long or not printable: bytes only")

    def charge(self, text: str | int) -> None:
        """Bound what names cost: shared parts of a value may be reached under very many names."""
        self._key_bytes += 8 + (len(text) if isinstance(text, str) else 0)
        if self._key_bytes > MAX_KEY_BYTES:
            raise Hostile(f"the names of the tensors take more than {MAX_KEY_BYTES} bytes")


def fill(tables: Tables, value: Any) -> None:
    """Walk `value` breadth first and put its groups of tensors and top-level scalars into `tables`.

    Every container is visited once, and nothing deeper than 64 levels is looked at (it still travels as bytes).
    Raises:
        Hostile: a tensor lies outside its storage, or a bound is passed.
    """
    _scalars(tables, value)
    if isinstance(value, Tensor):
        value = [value]
    if not isinstance(value, _CONTAINERS):
        return
    seen: set[int] = set()
    todo: deque[tuple[Path, Any]] = deque([((), value)])
    deeper = unnamed = 0
    while todo:
        path, container = todo.popleft()
        if id(container) in seen:
            continue
        seen.add(id(container))
        if _is_module(container):
            _add_group(tables, path, list(_module_tensors(tables, container)), module=True)
            continue
        tensors = []
        for key, child in _children(container):
            if type(child) is Record and child.tensor_kind and _is_good_name(key):
                tensors.append((key, Tensor(None, "", 0, (), (), child.tensor_kind)))
            if isinstance(child, Tensor):
                if _is_good_name(key):
                    tensors.append((key, child))
                else:
                    unnamed += 1
            elif isinstance(child, _CONTAINERS):
                if len(path) < MAX_DEPTH and _is_good_name(key):
                    tables.charge(key)
                    todo.append(((*path, key), child))
                else:
                    deeper += 1
        _add_group(tables, path, tensors, module=False)
    tables.note_unnamed(unnamed)
    if deeper:
        tables.notes.append(f"{deeper} parts lie deeper than {MAX_DEPTH} levels: bytes only")


def _children(container: Any) -> Iterator[tuple[Any, Any]]:
    """(key, child) of a container: a dict's items, a list's by index, a record's state, items, pairs and args."""
    if isinstance(container, dict):
        yield from container.items()
    elif isinstance(container, list | tuple):
        yield from enumerate(container)
    else:
        yield from enumerate(container.items)
        yield from container.pairs
        if isinstance(container.state, dict):
            yield from container.state.items()
        elif container.state is not None:
            yield "state", container.state
        if isinstance(container.args, tuple) and container.args:
            yield "args", container.args


def _is_good_name(key: Any) -> bool:
    if type(key) is int:
        return True
    return type(key) is str and len(key) <= MAX_NAME_BYTES and (key.isprintable() or not key)


def _scalars(tables: Tables, value: Any) -> None:
    if not isinstance(value, dict):
        return
    for key, scalar in value.items():
        if len(tables.scalars) >= MAX_SCALARS:
            return
        small = isinstance(scalar, bool | float) or (type(scalar) is int and abs(scalar) < 1 << 63)
        text = type(scalar) is str and len(scalar) <= 256 and scalar.isprintable()
        if type(key) is str and len(key) <= 64 and key.isprintable() and (small or text):
            tables.scalars[key] = scalar


def _add_group(tables: Tables, path: Path, tensors: list[tuple[Any, Tensor]], *, module: bool) -> None:
    if not tensors:
        return
    names, indices = [], []
    strings = all(type(name) is str for name, _ in tensors)
    for name, tensor in tensors:
        tables.charge(name)
        item_bytes = checked(tensor)
        names.append(str(name))
        indices.append(tables.add_tensor((*path, name), tensor, item_bytes))
    tables.groups.append([path, names, indices, module, strings])


def checked(tensor: Tensor) -> int:
    """Bytes an element, after proving that every element lies within the storage; marks what cannot be served.

    Raises:
        Hostile: too many dimensions, a negative or huge number, or a reach beyond the storage.
    """
    item_bytes = ITEM_BYTES.get(tensor.dtype, 0)
    shape, strides, storage = tensor.shape, tensor.strides, tensor.storage
    if len(shape) > 64 or (shape and not 0 <= min(shape) <= max(shape) < MAX_SIZE):
        raise Hostile(f"a tensor of shape {str(shape)[:100]}")
    if storage is None:
        return item_bytes
    if not item_bytes:
        if tensor.kind == "strided":
            tensor.kind = "unknown-dtype"
        return 1
    if len(strides) != len(shape) or (strides and not 0 <= min(strides) <= max(strides) < MAX_SIZE):
        raise Hostile(f"a tensor of strides {str(strides)[:100]}")
    elements, count = storage.bytes // item_bytes, element_count(shape)
    reach = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) + 1 if count else 0
    if not 0 <= tensor.offset <= elements or tensor.offset + reach > elements:
        raise Hostile(f"a tensor reaches element {tensor.offset + reach} of a storage of {elements}")
    if count > elements:
        if 0 not in strides or count > MAX_EXPANDED:
            raise Hostile(f"a tensor of {count} elements in a storage of {elements}")
        if count * item_bytes > MAX_EXPANDED_BYTES:
            tensor.kind = "expanded"
    return item_bytes


def _is_module(value: Any) -> bool:
    state = _module_state(value)
    return state is not None


def _module_state(value: Any) -> dict[Any, Any] | None:
    """The attributes of a pickled torch module; None for anything else."""
    if type(value) is not Record:
        return None
    state = value.state
    if isinstance(state, tuple) and state:
        state = state[0]
    if isinstance(state, dict) and "_parameters" in state and "_modules" in state:
        return state
    return None


def _module_tensors(
    tables: Tables, module: Record, prefix: str = "", depth: int = 0
) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) as the module's own state_dict would give them: persistent buffers only."""
    state = _module_state(module) or {}
    left_out = _strings_of(state.get("_non_persistent_buffers_set"))
    for part in ("_parameters", "_buffers"):
        members = state.get(part)
        for name, tensor in members.items() if isinstance(members, dict) else ():
            whole = prefix + name if type(name) is str else ""
            if not isinstance(tensor, Tensor) or not whole or not _is_good_name(whole):
                continue
            if part == "_parameters" or name not in left_out:
                yield whole, tensor
    children = state.get("_modules")
    for name, child in children.items() if isinstance(children, dict) and depth < MAX_DEPTH else ():
        whole = f"{prefix}{name}." if type(name) is str else ""
        if _is_module(child) and whole and _is_good_name(whole):
            tables.charge(whole)
            yield from _module_tensors(tables, child, whole, depth + 1)


def _strings_of(value: Any) -> set[str]:
    """The strings of a pickled set."""
    if type(value) is not Record:
        return set()
    inner = value.args[0] if isinstance(value.args, tuple) and value.args else ()
    members = [*value.items, *(inner if isinstance(inner, list | tuple) else ())]
    return {member for member in members if type(member) is str}
