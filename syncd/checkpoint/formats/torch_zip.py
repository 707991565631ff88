"""`torch.save`'s zip: data.pkl beside one stored record for each storage that it names."""

from __future__ import annotations

import zlib
from typing import Final

from syncd.checkpoint.budgets import ops_budget
from syncd.checkpoint.source import Source
from syncd.checkpoint.storages import Storages
from syncd.checkpoint.unpickle import Unpickler
from syncd.checkpoint.values import Hostile, Incomplete, Malformed, Unsupported
from syncd.checkpoint.walk import Tables, fill
from syncd.checkpoint.zipdir import STORED, Entry, read_directory

KIND: Final = "torch-zip"
MAX_PICKLE_BYTES: Final = 256 << 20
_TORCHSCRIPT: Final = ("code/", "constants.pkl")


def recognise(head: bytes, name: str) -> bool:
    """Any zip file: what is inside decides later whether it is torch's."""
    return head.startswith(b"PK\3\4")


def parse(source: Source) -> Tables:
    """Tables of a whole checkpoint.

    Raises:
        Incomplete: the file ends early, data.pkl is missing, or a storage it names is missing or of another size.
        Unsupported: another program's zip, or a feature that is not read.
        Malformed, Hostile: no honest file looks like this.
    """
    entries = read_directory(source)
    root = _root(entries)
    pickle_entry = entries[f"{root}data.pkl"]
    if pickle_entry.method != STORED:
        raise Unsupported("a torch zip packed again with compression: its tensors have no place in the file")
    if pickle_entry.size > MAX_PICKLE_BYTES:
        raise Hostile(f"data.pkl has {pickle_entry.size} bytes, more than {MAX_PICKLE_BYTES}")
    _check_byte_order(source, entries.get(f"{root}byteorder"))
    data = source.read(pickle_entry.start, pickle_entry.size)
    if pickle_entry.crc32 and zlib.crc32(data) != pickle_entry.crc32:
        raise Incomplete("data.pkl does not have the CRC32 of the zip directory")
    storages = Storages()
    unpickler = Unpickler(data, 0, storages.load, ops_budget(len(entries)))
    try:
        value = unpickler.load()
    except Incomplete as error:  # the record is whole, so the pickle never had its end
        raise Malformed(str(error)) from None
    _place(storages, entries, root)
    tables = Tables(KIND)
    fill(tables, value)
    tables.globals = sorted(str(name) for name in unpickler.globals.values())[:1000]
    tables.checks = [(entry.start, entry.size, entry.crc32) for entry in entries.values() if entry.crc32]
    tables.proof = (
        f"zip end record, data.pkl and the {len(storages.by_key)} storages that it names, each of its size"
    )
    if tables.checks:
        tables.proof += f"; CRC32 of {len(tables.checks)} of {len(entries)} records"
    return tables


def _root(entries: dict[str, Entry]) -> str:
    """The folder in the zip that holds data.pkl; refuses by name every zip that is not a checkpoint."""
    names = list(entries)
    root = names[0].partition("/")[0] + "/" if names and "/" in names[0] else ""
    if f"{root}archive_format" in entries or f"{root}models/model.json" in entries:
        raise Unsupported("a torch.export archive (.pt2): it holds a program and may hold machine code")
    if "model.weights.h5" in entries or ("config.json" in entries and "metadata.json" in entries):
        raise Unsupported("a Keras file (.keras)")
    if any(name.startswith(tuple(root + part for part in _TORCHSCRIPT)) for name in names):
        raise Unsupported("TorchScript: it holds code")
    if f"{root}data.pkl" in entries:
        return root
    if any(name.endswith((".data/serialization_id", "/byteorder", "/.format_version")) for name in names):
        raise Incomplete("data.pkl is missing from the torch zip: torch.save raised or was interrupted")
    if any(name.endswith(".npy") for name in names):
        raise Unsupported("a numpy archive (.npz)")
    raise Unsupported("a zip file that torch.save did not write")


def _check_byte_order(source: Source, entry: Entry | None) -> None:
    order = source.read(entry.start, min(entry.size, 16)) if entry and entry.method == STORED else b"little"
    if order != b"little":
        raise Unsupported(f"tensors in {order.decode('ascii', 'replace')}-endian byte order")


def _place(storages: Storages, entries: dict[str, Entry], root: str) -> None:
    """Give every storage its bytes in the file: a stored record of exactly its size."""
    for key, storage in storages.by_key.items():
        entry = entries.get(f"{root}data/{key}")
        if entry is None:
            raise Incomplete(f"storage {key[:60]!r} is missing from the file: torch.save was interrupted")
        if entry.method != STORED:
            raise Unsupported(
                "a torch zip packed again with compression: its tensors have no place in the file"
            )
        if entry.size != storage.bytes:
            raise Incomplete(f"storage {key[:60]!r} has {entry.size} of {storage.bytes} bytes")
        storage.first = entry.start
