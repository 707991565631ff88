"""What each opcode does to the unpickler's stack; the five most frequent ones are in its loop (unpickle.py)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from syncd.checkpoint.budgets import KEPT_BYTES, MAX_INT_KEY, MAX_KEY_DEPTH, MAX_LONG_BYTES, MAX_MARKS
from syncd.checkpoint.values import Blob, Hostile, Incomplete, Malformed, Record

if TYPE_CHECKING:
    from syncd.checkpoint.unpickle import Unpickler

_UINT16 = struct.Struct("<H").unpack_from
_INT32 = struct.Struct("<i").unpack_from
_UINT32 = struct.Struct("<I").unpack_from
_UINT64 = struct.Struct("<Q").unpack_from
_FLOAT64 = struct.Struct(">d").unpack_from


def checked_key(vm: Unpickler, key: Any, depth: int = 0) -> Any:
    """`key` if hashing it is cheap and honest; Hostile otherwise: nested tuples take 2^depth steps to hash."""
    kind = type(key)
    if kind is str or kind is bool or kind is float or kind is bytes or key is None:
        return key
    if kind is int:
        if not -MAX_INT_KEY < key < MAX_INT_KEY:
            raise Hostile("a dictionary key is an integer of more than 53 bits")
        return key
    if kind is tuple:
        if depth >= MAX_KEY_DEPTH:
            raise Hostile("a dictionary key is a deeply nested tuple")
        vm.spend(len(key))
        for part in key:
            checked_key(vm, part, depth + 1)
        return key
    if kind is list or kind is dict:
        raise Malformed(f"a dictionary key of type {kind.__name__}")
    return key  # inert values hash by identity


def set_items(vm: Unpickler, target: Any, items: list[Any]) -> None:
    if len(items) % 2:
        raise Malformed("a dictionary key without a value")
    if type(target) is dict:
        for index in range(0, len(items), 2):
            target[checked_key(vm, items[index])] = items[index + 1]
    elif type(target) is Record:
        target.pairs.extend(zip(items[::2], items[1::2], strict=True))
    else:
        raise Malformed(f"items set on a {type(target).__name__}")


def add_items(target: Any, items: list[Any]) -> None:
    if type(target) is list:
        target.extend(items)
    elif type(target) is Record:
        target.items.extend(items)
    else:
        raise Malformed(f"items added to a {type(target).__name__}")


# Handlers, one an opcode; the loop above has already stepped over the opcode itself.


def _proto(vm: Unpickler) -> None:
    version = vm.take(1)[0]
    if version > 5:
        raise Malformed(f"pickle protocol {version}")


def _frame(vm: Unpickler) -> None:
    vm.take(8)  # a frame's length is only a hint


def _put_line(vm: Unpickler) -> None:
    vm.memo[int(vm.line())] = vm.stack[-1]


def _memoize(vm: Unpickler) -> None:
    vm.memo[len(vm.memo)] = vm.stack[-1]


def _get_line(vm: Unpickler) -> None:
    vm.stack.append(vm.memo[int(vm.line())])


def _text(vm: Unpickler, length: int, encoding: str = "utf-8", errors: str = "surrogatepass") -> None:
    raw = vm.take(length) if length <= KEPT_BYTES else None
    if raw is None:
        _skip(vm, length)
        vm.stack.append(Blob(length))
    else:
        vm.stack.append(raw.decode(encoding, errors))


def _bytes(vm: Unpickler, length: int) -> None:
    if length <= KEPT_BYTES:
        vm.stack.append(vm.take(length))
    else:
        _skip(vm, length)
        vm.stack.append(Blob(length))


def _skip(vm: Unpickler, length: int) -> None:
    vm.position += length
    if vm.position > vm.size:
        raise Incomplete(f"the pickle ends at byte {vm.size}, within {length} bytes")


def _unicode1(vm: Unpickler) -> None:
    _text(vm, vm.take(1)[0])


def _unicode4(vm: Unpickler) -> None:
    start = vm.position
    length = _UINT32(vm.data, start)[0]
    vm.position = start + 4
    _text(vm, length)


def _unicode8(vm: Unpickler) -> None:
    _text(vm, _UINT64(vm.take(8))[0])


def _string1(vm: Unpickler) -> None:
    _text(vm, vm.take(1)[0], "latin-1", "strict")


def _string4(vm: Unpickler) -> None:
    length = _INT32(vm.take(4))[0]
    if length < 0:
        raise Malformed("a string of negative length")
    _text(vm, length, "latin-1", "strict")


def _bytes1(vm: Unpickler) -> None:
    _bytes(vm, vm.take(1)[0])


def _bytes4(vm: Unpickler) -> None:
    _bytes(vm, _UINT32(vm.take(4))[0])


def _bytes8(vm: Unpickler) -> None:
    _bytes(vm, _UINT64(vm.take(8))[0])


def _quoted(vm: Unpickler) -> None:
    vm.stack.append(vm.line().decode("latin-1").strip("'\""))


def _unicode_line(vm: Unpickler) -> None:
    vm.stack.append(vm.line().decode("raw-unicode-escape"))


def _int2(vm: Unpickler) -> None:
    vm.stack.append(_UINT16(vm.data, vm.position)[0])
    vm.position += 2


def _int4(vm: Unpickler) -> None:
    vm.stack.append(_INT32(vm.data, vm.position)[0])
    vm.position += 4


def _float8(vm: Unpickler) -> None:
    vm.stack.append(_FLOAT64(vm.take(8))[0])


def _long1(vm: Unpickler) -> None:
    vm.stack.append(int.from_bytes(vm.take(vm.take(1)[0]), "little", signed=True))


def _long4(vm: Unpickler) -> None:
    length = _INT32(vm.take(4))[0]
    if length > MAX_LONG_BYTES:
        raise Hostile(f"the pickle has an integer of {length} bytes")
    vm.stack.append(int.from_bytes(vm.take(length), "little", signed=True))


def _int_line(vm: Unpickler) -> None:
    text = vm.line()
    vm.stack.append(text == b"01" if text in (b"00", b"01") else _short_int(text))


def _long_line(vm: Unpickler) -> None:
    vm.stack.append(_short_int(vm.line().rstrip(b"L")))


def _short_int(text: bytes) -> int:
    if len(text) > MAX_LONG_BYTES:
        raise Hostile(f"the pickle has an integer of {len(text)} digits")
    return int(text)


def _float_line(vm: Unpickler) -> None:
    vm.stack.append(float(vm.line()))


def _none(vm: Unpickler) -> None:
    vm.stack.append(None)


def _true(vm: Unpickler) -> None:
    vm.stack.append(True)


def _false(vm: Unpickler) -> None:
    vm.stack.append(False)


def _empty_tuple(vm: Unpickler) -> None:
    vm.stack.append(())


def _empty_list(vm: Unpickler) -> None:
    vm.stack.append([])


def _empty_dict(vm: Unpickler) -> None:
    vm.stack.append({})


def _empty_set(vm: Unpickler) -> None:
    vm.stack.append(Record(vm.find("builtins", "set")))


def _mark(vm: Unpickler) -> None:
    if len(vm.marks) >= MAX_MARKS:
        raise Hostile(f"the pickle nests more than {MAX_MARKS} marks")
    vm.marks.append(vm.stack)
    vm.stack = []


def _tuple(vm: Unpickler) -> None:
    items = vm.pop_mark()
    vm.stack.append(tuple(items))


def _list(vm: Unpickler) -> None:
    items = vm.pop_mark()
    vm.stack.append(items)


def _dict(vm: Unpickler) -> None:
    items = vm.pop_mark()
    made: dict[Any, Any] = {}
    set_items(vm, made, items)
    vm.stack.append(made)


def _frozenset(vm: Unpickler) -> None:
    items = vm.pop_mark()
    vm.stack.append(Record(vm.find("builtins", "frozenset"), (items,)))


def _tuple1(vm: Unpickler) -> None:
    vm.stack[-1] = (vm.stack[-1],)


def _tuple2(vm: Unpickler) -> None:
    last = vm.stack.pop()
    vm.stack[-1] = (vm.stack[-1], last)


def _tuple3(vm: Unpickler) -> None:
    stack = vm.stack
    stack[-3:] = [(stack[-3], stack[-2], stack[-1])]


def _append(vm: Unpickler) -> None:
    value = vm.stack.pop()
    add_items(vm.stack[-1], [value])


def _appends(vm: Unpickler) -> None:
    items = vm.pop_mark()
    add_items(vm.stack[-1], items)


def _set_item(vm: Unpickler) -> None:
    value = vm.stack.pop()
    key = vm.stack.pop()
    set_items(vm, vm.stack[-1], [key, value])


def _set_items(vm: Unpickler) -> None:
    items = vm.pop_mark()
    set_items(vm, vm.stack[-1], items)


def _global(vm: Unpickler) -> None:
    module = vm.line().decode()
    vm.stack.append(vm.find(module, vm.line().decode()))


def _stack_global(vm: Unpickler) -> None:
    name = vm.stack.pop()
    module = vm.stack.pop()
    if type(name) is not str or type(module) is not str:
        raise Malformed("a global whose name is not a string")
    vm.stack.append(vm.find(module, name))


def _reduce(vm: Unpickler) -> None:
    args = vm.stack.pop()
    vm.stack[-1] = vm.call(vm.stack[-1], args)


def _new_object_ex(vm: Unpickler) -> None:
    keywords = vm.stack.pop()
    args = vm.stack.pop()
    value = vm.call(vm.stack[-1], args)
    if type(value) is Record:
        value.items.append(keywords)
    vm.stack[-1] = value


def _instance(vm: Unpickler) -> None:
    module = vm.line().decode()
    name = vm.find(module, vm.line().decode())
    items = vm.pop_mark()
    vm.stack.append(vm.call(name, tuple(items)))


def _object(vm: Unpickler) -> None:
    items = vm.pop_mark()
    vm.stack.append(vm.call(items[0], tuple(items[1:])))


def _build(vm: Unpickler) -> None:
    state = vm.stack.pop()
    target = vm.stack[-1]
    if type(target) is Record:
        target.state = state
    elif type(target) in (list, tuple, str, int, float, bool):
        raise Malformed(f"a state set on a {type(target).__name__}")
    # On a dict (OrderedDict's _metadata), a tensor or a storage it holds attributes that are not read.


def _persistent_id(vm: Unpickler) -> None:
    vm.stack[-1] = vm.load_storage(vm.stack[-1])


def _persistent_line(vm: Unpickler) -> None:
    vm.stack.append(vm.load_storage(vm.line().decode()))


def _pop(vm: Unpickler) -> None:
    if vm.stack:
        vm.stack.pop()
    else:
        vm.pop_mark()


def _pop_to_mark(vm: Unpickler) -> None:
    vm.pop_mark()


def _duplicate(vm: Unpickler) -> None:
    vm.stack.append(vm.stack[-1])


def _nothing(vm: Unpickler) -> None:
    """READONLY_BUFFER: says how to hold a value that we do not hold."""


def _stop(vm: Unpickler) -> None:
    vm.result = vm.stack.pop()


def _unknown(vm: Unpickler) -> None:
    opcode = vm.data[vm.position - 1]
    raise Malformed(f"opcode {opcode:#04x} at byte {vm.position - 1} is not one of protocols 0 to 5")


_BY_OPCODE: Final[dict[bytes, Callable[[Unpickler], None]]] = {
    b"\x80": _proto, b"\x95": _frame,   b"p": _put_line, b"\x94": _memoize,
      b"g": _get_line, b"\x8c": _unicode1, b"X": _unicode4, b"\x8d": _unicode8,
    b"V": _unicode_line, b"U": _string1, b"T": _string4, b"S": _quoted, b"C": _bytes1, b"B": _bytes4,
    b"\x8e": _bytes8, b"\x96": _bytes8,  b"M": _int2, b"J": _int4, b"G": _float8,
    b"\x8a": _long1, b"\x8b": _long4, b"I": _int_line, b"L": _long_line, b"F": _float_line, b"N": _none,
    b"\x88": _true, b"\x89": _false, b")": _empty_tuple, b"]": _empty_list, b"}": _empty_dict,
    b"\x8f": _empty_set, b"(": _mark, b"t": _tuple, b"l": _list, b"d": _dict, b"\x91": _frozenset,
    b"\x85": _tuple1, b"\x86": _tuple2, b"\x87": _tuple3, b"a": _append, b"e": _appends, b"\x90": _appends,
    b"s": _set_item, b"u": _set_items, b"c": _global, b"\x93": _stack_global, b"R": _reduce, b"\x81": _reduce,
    b"\x92": _new_object_ex, b"i": _instance, b"o": _object, b"b": _build, b"Q": _persistent_id,
    b"P": _persistent_line, b"0": _pop, b"1": _pop_to_mark, b"2": _duplicate, b"\x98": _nothing, b".": _stop,
}  # fmt: skip
HANDLERS: Final = [_BY_OPCODE.get(bytes([opcode]), _unknown) for opcode in range(256)]
