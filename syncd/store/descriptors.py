"""Files and folders by descriptors: a name is looked up in the folder that is held open, and no link is followed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import time
from collections import deque
from collections.abc import Iterator

from syncd.durable import write_all
from syncd.errors import KeyInvalid, StoreBroken, StoreUnreachable
from syncd.store.base import ObjectInfo, validate_key

LOCK_WITHIN_S = 30.0
SWEEP_AFTER_S = 86400.0
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
READ_FOLDER = READ | os.O_DIRECTORY
_ASIDE = ".part-"
_LOCK = ".lock"


def read_exactly(descriptor: int, start: int, length: int) -> bytes:
    """Exactly `length` bytes. Objects are replaced, never changed: fewer mean that someone else wrote here."""
    parts = []
    while length:
        part = os.pread(descriptor, length, start)
        if not part:
            why = "something other than syncd writes here"
            raise StoreBroken("a file became shorter while it was read", why=why)
        parts.append(part)
        start, length = start + len(part), length - len(part)
    return b"".join(parts) if len(parts) != 1 else parts[0]


@contextlib.contextmanager
def opened(name: str, folder: int) -> Iterator[tuple[int, int]]:
    """Descriptor and size of a regular file; a link or a pipe is OSError, a folder as if nothing were there."""
    descriptor = os.open(name, READ, dir_fd=folder)
    try:
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))  # the beginning of other keys
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EISDIR, "not a regular file")
        yield descriptor, found.st_size
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def aside_file(folder: int, data: bytes, permissions: int) -> Iterator[str]:
    """The name of a durable file beside the one to be; gone afterwards unless it was renamed."""
    name = f"{_ASIDE}{secrets.token_hex(8)}"
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        try:
            write_all(descriptor, data)
            os.fchmod(descriptor, permissions)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        yield name
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)


def sweep(folder: int) -> None:
    """Remove what puts that were killed left aside, a day ago or earlier; nothing that may be in use."""
    too_old = time.time() - SWEEP_AFTER_S
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(_ASIDE):
                with contextlib.suppress(FileNotFoundError, PermissionError):
                    if entry.stat(follow_symlinks=False).st_mtime < too_old:
                        os.unlink(entry.name, dir_fd=folder)


@contextlib.contextmanager
def locked(folder: int, url: str) -> Iterator[None]:
    """Hold the folder's lock file, which is never replaced: a lock on a renamed file is lost."""
    permissions = stat.S_IMODE(os.fstat(folder).st_mode) & 0o666
    descriptor = os.open(
        _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, permissions, dir_fd=folder
    )
    try:
        with contextlib.suppress(PermissionError):  # another user's: he has done it
            os.fchmod(descriptor, permissions)
        give_up = time.monotonic() + LOCK_WITHIN_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up:
                    what = f"another process has held the store's lock for {LOCK_WITHIN_S:.0f} s"
                    raise StoreUnreachable(what, do="look for a process that hangs", store=url) from None
            time.sleep(0.002)  # a timed flock does not exist; in a thread of its own
        yield
    finally:
        os.close(descriptor)


def make_folder_at(name: str, parent: int, permissions: int) -> None:
    """Make a folder durable in `parent`; one that a racer made is as good."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, permissions & 0o777, dir_fd=parent)
        os.chmod(name, permissions, dir_fd=parent)
    os.fsync(parent)


def collect(folder: int, prefix: str, found: deque[ObjectInfo]) -> None:
    """Every object below `folder`, whose key is `prefix`; what vanishes meanwhile and what is no object is left out."""
    with os.scandir(folder) as entries:
        for entry in entries:
            key = f"{prefix}/{entry.name}" if prefix else entry.name
            try:
                validate_key(key)
                if entry.is_dir(follow_symlinks=False):
                    below = os.open(entry.name, READ_FOLDER, dir_fd=folder)
                    try:
                        collect(below, key, found)
                    finally:
                        os.close(below)
                elif entry.is_file(follow_symlinks=False):
                    facts = entry.stat(follow_symlinks=False)
                    found.append(ObjectInfo(key, facts.st_size, None, facts.st_mtime))
            except (FileNotFoundError, KeyInvalid):
                continue
