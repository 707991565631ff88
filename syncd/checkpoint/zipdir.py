"""The directory of a zip file, read strictly: the end record is the file's last 22 bytes and everything adds up.

Python's own reader searches for an end record and forgives junk before and after it: several archives glued together
then look like one checkpoint with one tensor. Here the directory ends where the end record begins, or it is no zip.
Source: PKWARE APPNOTE 6.3.10, 4.3 and 4.5.3; the writer to understand is PyTorch's.
"""

from __future__ import annotations

import struct
from typing import Final

from syncd.checkpoint.source import Source
from syncd.checkpoint.values import Hostile, Incomplete

STORED: Final = 0
MAX_DIRECTORY_BYTES: Final = 256 << 20
_ENCRYPTED: Final = 1
_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF


class Entry:
    """One record of the archive; `start` is the first byte of its data, `size` the bytes it has in the file."""

    __slots__ = ("crc32", "header", "method", "name", "size", "start")

    def __init__(self, name: str, method: int, crc32: int, size: int, header: int) -> None:
        self.name = name
        self.method = method
        self.crc32 = crc32
        self.size = size
        self.header = header
        self.start = -1


def read_directory(source: Source) -> dict[str, Entry]:
    """The records by name, in the directory's order, each with the place of its data.

    Raises:
        Incomplete: the end record is not the last thing in the file, or a record lies outside it.
            Nothing covers the directory with a checksum: what contradicts itself may be torn as well as forged.
        Hostile: records overlap, or one name stands for two.
    """
    count, offset, size = _directory_place(source)
    if size > MAX_DIRECTORY_BYTES or count * _ENTRY.size > size:
        raise Hostile(f"a zip directory of {size} bytes for {count} records")
    raw = source.read(offset, size)
    entries: dict[str, Entry] = {}
    position = 0
    for _ in range(count):
        entry, position = _read_entry(raw, position, offset)
        if entry.name in entries:
            raise Hostile(f"two records of the name {entry.name[:100]!r}")
        entries[entry.name] = entry
    if position != size:
        raise Incomplete(f"the zip directory has {size - position} bytes too many")
    _place(source, entries, offset)
    return entries


def _directory_place(source: Source) -> tuple[int, int, int]:
    """(records, first byte, bytes) of the directory, which must end exactly where the end records begin."""
    if source.size < _END.size:
        raise Incomplete(f"{source.size} bytes are too few for a zip file's end record")
    at = source.size - _END.size
    magic, disk, first_disk, here, count, size, offset, comment = _END.unpack(source.read(at, _END.size))
    if magic != b"PK\5\6" or comment:
        raise Incomplete("the file does not end with a zip's end record")
    if disk or first_disk or here != count:
        raise Incomplete("a zip file on several disks")
    end = at
    locator = source.read(at - _LOCATOR.size, _LOCATOR.size) if at >= _LOCATOR.size + _END64.size else b""
    if locator[:4] == b"PK\6\7":
        end = at - _LOCATOR.size - _END64.size
        if _LOCATOR.unpack(locator)[2] != end:
            raise Incomplete("the zip's 64-bit end record is not where it should be")
        fields = _END64.unpack(source.read(end, _END64.size))
        if fields[0] != b"PK\6\6" or fields[1] != _END64.size - 12 or fields[6] != fields[7]:
            raise Incomplete("the zip's 64-bit end record is damaged")
        _agree(count, fields[7], _FULL16)
        _agree(size, fields[8], _FULL32)
        _agree(offset, fields[9], _FULL32)
        count, size, offset = fields[7], fields[8], fields[9]
    if offset + size != end:
        raise Incomplete(f"the zip directory ends at byte {offset + size}, its end record begins at {end}")
    return count, offset, size


def _agree(short: int, long: int, full: int) -> None:
    if short not in (full, long):
        raise Incomplete(f"the zip's end records disagree: {short} and {long}")


def _read_entry(raw: bytes, position: int, limit: int) -> tuple[Entry, int]:
    """The directory entry at `position` and the position behind it; `limit` is where the directory begins."""
    if position + _ENTRY.size > len(raw):
        raise Incomplete("the zip directory ends within a record")
    fields = _ENTRY.unpack_from(raw, position)
    magic, flags, method, crc32, packed, size = fields[0], fields[3], fields[4], *fields[7:10]
    name_length, extra_length, comment_length, disk, header = *fields[10:14], fields[16]
    position += _ENTRY.size
    end = position + name_length + extra_length + comment_length
    if magic != b"PK\1\2" or end > len(raw):
        raise Incomplete("the zip directory is damaged")
    name = raw[position : position + name_length].decode("utf-8", "surrogateescape")
    if _FULL32 in (packed, size, header):
        extra = raw[position + name_length : position + name_length + extra_length]
        size, packed, header = _long_fields(extra, size, packed, header)
    if disk or flags & _ENCRYPTED or (method == STORED and packed != size):
        raise Incomplete(f"record {name[:100]!r} is encrypted, split or of two sizes")
    if header + _LOCAL.size + packed > limit:
        raise Incomplete(f"record {name[:100]!r} lies outside the file")
    return Entry(name, method, crc32, packed, header), end


def _long_fields(extra: bytes, size: int, packed: int, header: int) -> tuple[int, int, int]:
    """The 64-bit values of those fields that are full, from the extra field 0x0001."""
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        body = extra[position + 4 : position + 4 + length]
        position += 4 + length
        if kind == 1:
            values = iter(struct.unpack(f"<{len(body) // 8}Q", body[: len(body) // 8 * 8]))
            try:
                return (
                    next(values) if size == _FULL32 else size,
                    next(values) if packed == _FULL32 else packed,
                    next(values) if header == _FULL32 else header,
                )
            except StopIteration:
                break
    raise Incomplete("a record's 64-bit sizes are missing")


def _place(source: Source, entries: dict[str, Entry], limit: int) -> None:
    """Find where each record's data begins, and prove that no two records share a byte."""
    end = 0
    for entry in sorted(entries.values(), key=lambda entry: entry.header):
        if entry.header < end:
            raise Hostile(f"record {entry.name[:100]!r} overlaps another")
        fields = _LOCAL.unpack(source.read(entry.header, _LOCAL.size))
        if fields[0] != b"PK\3\4" or fields[3] != entry.method:
            raise Incomplete(f"record {entry.name[:100]!r} does not begin where the directory says")
        entry.start = entry.header + _LOCAL.size + fields[9] + fields[10]
        end = entry.start + entry.size
        if end > limit:
            raise Incomplete(f"record {entry.name[:100]!r} lies outside the file")
