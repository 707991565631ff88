"""Files and room for them: reserved before a download begins, and told as DiskFull when there is none."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from syncd.errors import DiskFull

MARGIN_BYTES: Final = 8 << 20
"""Left free on every reservation: the state file and the next release's documents need some room too."""

_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def telling_full(path: Path) -> Iterator[None]:
    """Raise DiskFull in place of the operating system's errors for a full disk or quota."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise DiskFull(
            f"no room left below {path}: {error.strerror}",
            do="free some room or lower `keep`; what serves goes on serving, and it is tried again by itself",
            path=path,
        ) from error


def check_room(folder: Path, needed: int) -> None:
    """Raise DiskFull unless `needed` bytes and a margin are free below `folder`; blocks for one statvfs."""
    found = os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    if needed + MARGIN_BYTES > free:
        raise DiskFull(
            f"{needed} bytes are needed below {folder}, {max(0, free - MARGIN_BYTES)} are free",
            do="free some room or lower `keep`; what serves goes on serving, and it is tried again by itself",
            path=folder,
        )


def open_reserved(path: Path, size: int) -> int:
    """A descriptor of the file at `path` with all of its blocks reserved; what lies there already stays.

    Raises:
        DiskFull: there is no room; a file that was made for this is gone again.
    """
    existing = path.stat().st_size if path.exists() else -1
    if existing > size:
        path.unlink()
        existing = -1
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if existing < size:
            check_room(path.parent, size - max(existing, 0))
            with telling_full(path.parent):
                if size:
                    os.posix_fallocate(descriptor, 0, size)
    except BaseException:
        os.close(descriptor)
        if existing < 0:
            path.unlink()
        raise
    return descriptor


def file_digest(path: Path) -> str:
    """`sha256:HEX` of a file, read in pieces. Blocks."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


class opened:  # noqa: N801 - reads as what it is: `with opened(path, flags) as file`
    """A descriptor for the length of a block."""

    def __init__(self, path: Path, flags: int) -> None:
        self._file = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW)

    def __enter__(self) -> int:
        return self._file

    def __exit__(self, *_: object) -> None:
        os.close(self._file)


def is_hole(file: int, offset: int, length: int) -> bool:
    """Whether nothing was ever written there."""
    try:
        return os.lseek(file, offset, os.SEEK_DATA) >= offset + length
    except OSError:  # ENXIO: nothing but holes up to the end
        return True


def pwrite_all(file: int, data: memoryview, offset: int) -> None:
    """Write all of `data` at `offset`, however many calls it takes."""
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written
