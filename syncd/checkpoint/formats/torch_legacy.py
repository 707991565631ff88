"""`torch.save`'s format before 1.6: four pickles, the list of storage keys, then each storage behind its count."""

from __future__ import annotations

import struct
from typing import Any, Final

from syncd.checkpoint.source import Source
from syncd.checkpoint.storages import Storages
from syncd.checkpoint.unpickle import Unpickler
from syncd.checkpoint.values import Hostile, Incomplete, Malformed, Unsupported
from syncd.checkpoint.walk import Tables, fill

KIND: Final = "torch-legacy"
MAX_OPS: Final = 8_000_000
WINDOWS: Final = (1 << 20, 16 << 20, 256 << 20)
_MAGIC: Final = 0x1950A86A20F9469CFC6C
_MAGIC_BYTES: Final = b"l\xfc\x9cF\xf9 j\xa8P\x19"


def recognise(head: bytes, name: str) -> bool:
    return head[:1] == b"\x80" and _MAGIC_BYTES in head[:32]


def parse(source: Source) -> Tables:
    """Tables of a whole checkpoint; no checksum exists, so only sizes prove it.

    Raises:
        Incomplete: a pickle is cut or torn, or the file does not end behind the last storage.
        Unsupported: another byte order or version.
        Hostile: a budget is used up.
    """
    storages = Storages(legacy=True)
    try:
        unpickler, value, keys, end = _pickles(source, storages)
    except Malformed as error:  # nothing tells a torn write from a forged one: look again later
        raise Incomplete(f"not written to the end: {error}") from None
    _place(source, storages, keys, end)
    tables = Tables(KIND)
    fill(tables, value)
    tables.globals = sorted(str(name) for name in unpickler.globals.values())[:1000]
    tables.proof = f"the file ends exactly behind its {len(keys)} storages (the format has no checksum)"
    return tables


def _pickles(source: Source, storages: Storages) -> tuple[Unpickler, Any, list[Any], int]:
    """Unpickler of the object, the object, the keys and the byte behind them, from a window that grows at need."""
    for window in WINDOWS:
        storages.by_key.clear()
        data = source.head(window)
        position, parts = 0, []
        try:
            for number in range(5):
                unpickler = Unpickler(data, position, storages.load, MAX_OPS if number == 3 else 1_000_000)
                value = unpickler.load()
                parts.append((unpickler, value))
                position = unpickler.position
                _check_preamble(number, value)
        except Incomplete:
            if len(data) == source.size:
                raise
            continue
        return parts[3][0], parts[3][1], parts[4][1], position
    raise Hostile(f"the pickles take more than {WINDOWS[-1]} bytes")


def _check_preamble(number: int, value: Any) -> None:
    if number == 0 and value != _MAGIC:
        raise Malformed("the magic number is not torch's")
    if number == 1 and value != 1001:
        raise Unsupported(f"legacy protocol version {str(value)[:20]}")
    if number == 2 and (not isinstance(value, dict) or value.get("little_endian") is not True):
        raise Unsupported("tensors in big-endian byte order")
    if number == 4 and not (isinstance(value, list) and all(type(key) is str for key in value)):
        raise Malformed("the storage keys are not a list of strings")


def _place(source: Source, storages: Storages, keys: list[str], position: int) -> None:
    """Each storage lies behind its 8-byte count, in the order of `keys`, and the file ends behind the last."""
    if set(keys) != set(storages.by_key) or len(keys) != len(storages.by_key):
        raise Incomplete("the storage keys are not those that the pickle names")
    for key in keys:
        storage = storages.by_key[key]
        count = struct.unpack("<q", source.read(position, 8))[0]
        if count != storage.elements:
            raise Incomplete(f"storage {key[:60]!r} has {count} of {storage.elements} elements")
        storage.first = position + 8
        position = storage.first + storage.bytes
        if position > source.size:
            raise Incomplete(f"storage {key[:60]!r} ends at byte {position} of {source.size}")
    if position != source.size:
        raise Hostile(f"{source.size - position} bytes lie behind the last storage")
