"""A store in a folder: durable, create-only by a hard link, compare-and-set under a lock, through no symbolic link.

Objects are files; what begins with a dot (`.part-…` being written, `.lock`) is ours and no object. An ETag is the
SHA-256 of the content, so equal content is the same object even after a copy of the folder. Names are made durable
before a put returns: fsync the file, name it, fsync the folder. New folders and files take their permissions from the
root.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import stat
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import ParamSpec, TypeVar

from syncd.durable import make_folder, write_all
from syncd.errors import (
    ObjectChanged,
    ObjectExists,
    ObjectMissing,
    ObjectTooLarge,
    StoreBroken,
    StoreCannot,
    StoreDenied,
    StoreError,
    StoreFull,
    StoreReadOnly,
    StoreUnreachable,
)
from syncd.store.base import (
    MAX_OBJECT_BYTES,
    Blob,
    Capabilities,
    Create,
    IfMatch,
    Mode,
    ObjectInfo,
    validate_key,
    validate_prefix,
)

P = ParamSpec("P")
T = TypeVar("T")

LOCK_WITHIN_S = 30.0
_MARKER = ".syncd-store"
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_ERRORS: dict[int, tuple[type[StoreError], str]] = {
    errno.ENOSPC: (StoreFull, "free space on that file system"),
    errno.EDQUOT: (StoreFull, "the quota on that file system is used up"),
    errno.EACCES: (StoreDenied, "give this user access to the folder"),
    errno.EPERM: (StoreDenied, "give this user access to the folder"),
    errno.EROFS: (StoreReadOnly, "the file system is mounted read-only"),
    errno.ELOOP: (StoreBroken, "a store holds no symbolic links: remove it"),
    errno.ENOTDIR: (StoreBroken, "a file or a symbolic link stands where a folder should be"),
    errno.EISDIR: (StoreBroken, "something that is no file stands where an object should be: remove it"),
    errno.ENXIO: (StoreBroken, "something that is no file stands where an object should be: remove it"),
}


class FolderStore:
    """A store in a local or mounted folder. Never makes the root by itself: only with `create` (`syncd init`)."""

    capabilities = Capabilities(
        write=True, create_only=True, compare_and_set=True, list=True, delete=True, ranges=True
    )

    def __init__(self, root: Path, *, create: bool = False) -> None:
        self.root = Path(os.path.abspath(root))  # noqa: PTH100 - resolve() would follow the link a mount hides behind
        self.url = self.root.as_uri()
        self.wire_bytes = 0
        self.requests = 0
        if create:
            with self._told("", "make the store"):
                make_folder(self.root)
                if not (self.root / _MARKER).exists():
                    self._put_file(_MARKER, b"syncd store\n", Create())

    async def get(self, key: str, *, limit: int) -> Blob:
        validate_key(key)
        data = await self._ask(self._read, key, limit)
        self.wire_bytes += len(data)
        return Blob(data, _etag(data))

    async def get_if_changed(self, key: str, etag: str | None, *, limit: int) -> Blob | None:
        validate_key(key)
        blob = await self._ask(self._read_if_changed, key, etag, limit)
        self.wire_bytes += len(blob.data) if blob else 0
        return blob

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        validate_key(key)
        data = await self._ask(self._read_range, key, start, length)
        self.wire_bytes += len(data)
        return data

    async def head(self, key: str) -> ObjectInfo:
        validate_key(key)
        return await self._ask(self._look, key)

    async def put(self, key: str, data: bytes, *, mode: Mode) -> str | None:
        validate_key(key)
        if len(data) > MAX_OBJECT_BYTES:
            raise ObjectTooLarge(f"{len(data)} bytes for {key}: a put takes at most {MAX_OBJECT_BYTES}")
        return await self._ask(self._put, key, data, mode)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        prefix = validate_prefix(prefix)
        for found in await self._ask(self._walk, prefix):
            yield found

    async def delete(self, key: str) -> None:
        validate_key(key)
        await self._ask(self._delete, key)

    async def aclose(self) -> None:
        """Nothing is held open between calls."""

    async def _ask(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        self.requests += 1
        return await asyncio.to_thread(call, *args, **kwargs)

    # Everything below blocks, and runs in a thread.

    def _read(self, key: str, limit: int) -> bytes:
        with self._told(key, "read"), self._object(key) as (descriptor, size):
            if size > limit:
                raise ObjectTooLarge(f"{key} has {size} bytes, at most {limit} are taken", store=self.url)
            return _read_exactly(descriptor, 0, size)

    def _read_if_changed(self, key: str, etag: str | None, limit: int) -> Blob | None:
        data = self._read(key, limit)
        found = _etag(data)
        return None if found == etag else Blob(data, found)

    def _read_range(self, key: str, start: int, length: int) -> bytes:
        with self._told(key, "read"), self._object(key) as (descriptor, size):
            if start < 0 or length < 0 or start + length > size:
                raise StoreBroken(
                    f"{key} has {size} bytes: there are no {length} from {start}", store=self.url, key=key
                )
            return _read_exactly(descriptor, start, length)

    def _look(self, key: str) -> ObjectInfo:
        with self._told(key, "look at"), self._object(key) as (descriptor, size):
            digest = hashlib.sha256()
            for start in range(0, size, 1 << 20):
                digest.update(_read_exactly(descriptor, start, min(1 << 20, size - start)))
            return ObjectInfo(key, size, digest.hexdigest(), os.fstat(descriptor).st_mtime)

    def _put(self, key: str, data: bytes, mode: Mode) -> str:
        with self._told(key, "write"):
            if self._is_absent():
                raise self._absent()
            self._put_file(key, data, mode)
        return _etag(data)

    def _put_file(self, key: str, data: bytes, mode: Mode) -> None:
        name = key.rpartition("/")[2]
        with self._folder(key, make=True) as folder:
            if isinstance(mode, Create):
                with _aside(folder, data, self._permissions()) as aside:
                    self._link(folder, aside, name, key)
                return
            with _locked(folder, self.url):
                if isinstance(mode, IfMatch):
                    self._expect(folder, name, key, mode.etag)
                with _aside(folder, data, self._permissions()) as aside:
                    os.rename(aside, name, src_dir_fd=folder, dst_dir_fd=folder)
                    os.fsync(folder)

    def _link(self, folder: int, aside: str, name: str, key: str) -> None:
        try:
            os.link(aside, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
        except FileExistsError:
            os.fsync(folder)  # who made it may not have come to this yet; we say that it exists
            raise ObjectExists(f"{key} is there already", store=self.url, key=key) from None
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EOPNOTSUPP):
                why = "the file system has no hard links (exFAT and some network mounts): keep the store on another"
                raise StoreCannot(f"{key} cannot be created safely", why=why, store=self.url) from error
            raise
        os.fsync(folder)

    def _expect(self, folder: int, name: str, key: str, etag: str) -> None:
        try:
            with _opened(name, folder) as (descriptor, size):
                found = _etag(_read_exactly(descriptor, 0, size)) if size <= MAX_OBJECT_BYTES else "too large"
        except FileNotFoundError:
            found = "nothing"
        if found != etag:
            raise ObjectChanged(f"{key} is no longer what was read", store=self.url, key=key)

    def _delete(self, key: str) -> None:
        with self._told(key, "delete"):
            if self._is_absent():
                raise self._absent()
            with (
                contextlib.suppress(FileNotFoundError),
                self._folder(key) as folder,
                _locked(folder, self.url),
            ):
                os.unlink(key.rpartition("/")[2], dir_fd=folder)
                os.fsync(folder)

    def _walk(self, prefix: str) -> tuple[ObjectInfo, ...]:
        found: deque[ObjectInfo] = deque()
        with self._told(prefix, "list"):
            if self._is_absent():
                raise self._absent()
            with (
                contextlib.suppress(FileNotFoundError),
                self._folder(f"{prefix}/." if prefix else ".") as folder,
            ):
                _collect(folder, prefix, found)
        return tuple(found)

    @contextlib.contextmanager
    def _folder(self, key: str, *, make: bool = False) -> Iterator[int]:
        """A descriptor of the folder that holds `key`, reached without following a link below the root."""
        at = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in key.split("/")[:-1]:
                try:
                    below = os.open(name, _READ | os.O_DIRECTORY, dir_fd=at)
                except FileNotFoundError:
                    if not make:
                        raise
                    _make_folder(name, at, self.root.stat().st_mode & 0o7777)
                    below = os.open(name, _READ | os.O_DIRECTORY, dir_fd=at)
                except NotADirectoryError:
                    if make or stat.S_ISLNK(os.lstat(name, dir_fd=at).st_mode):
                        raise
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from None
                os.close(at)
                at = below
            yield at
        finally:
            os.close(at)

    @contextlib.contextmanager
    def _object(self, key: str) -> Iterator[tuple[int, int]]:
        with self._folder(key) as folder, _opened(key.rpartition("/")[2], folder) as opened:
            yield opened

    def _permissions(self) -> int:
        return self.root.stat().st_mode & 0o666

    def _is_absent(self) -> bool:
        """A root that is missing, or empty as the mount point of a disk that is not mounted."""
        try:
            with os.scandir(self.root) as entries:
                return next(entries, None) is None
        except FileNotFoundError:
            return True

    def _absent(self) -> StoreUnreachable:
        return StoreUnreachable(
            f"there is no store in {self.root}",
            why="the folder is missing or empty: not mounted, moved, or never made",
            do="mount it, or make a new store there with `syncd init`; nothing was written",
            store=self.url,
        )

    @contextlib.contextmanager
    def _told(self, key: str, verb: str) -> Iterator[None]:
        """Turn the operating system's errors into the store's."""
        try:
            yield
        except FileNotFoundError as error:
            if self._is_absent():
                raise self._absent() from error
            raise ObjectMissing(f"there is no {key}", store=self.url, key=key) from error
        except OSError as error:
            kind, do = _ERRORS.get(error.errno or 0, (StoreUnreachable, "look after the disk or the mount"))
            what = f"cannot {verb} {key or self.root}: {error.strerror}"
            raise kind(what, do=do, store=self.url, key=key) from error


def _etag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _read_exactly(descriptor: int, start: int, length: int) -> bytes:
    """Objects are replaced, never changed: fewer bytes than the descriptor's size mean that someone else wrote here."""
    parts = []
    while length:
        part = os.pread(descriptor, length, start)
        if not part:
            raise StoreBroken(
                "a file became shorter while it was read", why="something other than syncd writes here"
            )
        parts.append(part)
        start, length = start + len(part), length - len(part)
    return b"".join(parts) if len(parts) != 1 else parts[0]


@contextlib.contextmanager
def _opened(name: str, folder: int) -> Iterator[tuple[int, int]]:
    """Descriptor and size of a regular file; a link, a pipe or a folder is no object."""
    descriptor = os.open(name, _READ, dir_fd=folder)
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
def _aside(folder: int, data: bytes, permissions: int) -> Iterator[str]:
    """The name of a durable file beside the one to be; gone afterwards unless it was renamed."""
    name = f".part-{secrets.token_hex(8)}"
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


@contextlib.contextmanager
def _locked(folder: int, url: str) -> Iterator[None]:
    """Hold the folder's lock file, which is never replaced: a lock on a renamed file is lost."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(".lock", flags, stat.S_IMODE(os.fstat(folder).st_mode) & 0o666, dir_fd=folder)
    try:
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


def _make_folder(name: str, parent: int, permissions: int) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, permissions & 0o777, dir_fd=parent)
        os.chmod(name, permissions, dir_fd=parent)
    os.fsync(parent)


def _collect(folder: int, prefix: str, found: deque[ObjectInfo]) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.is_symlink():
                continue
            key = f"{prefix}/{entry.name}" if prefix else entry.name
            if entry.is_dir(follow_symlinks=False):
                below = os.open(entry.name, _READ | os.O_DIRECTORY, dir_fd=folder)
                try:
                    _collect(below, key, found)
                finally:
                    os.close(below)
            elif entry.is_file(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError):  # deleted since it was listed
                    facts = entry.stat(follow_symlinks=False)
                    found.append(ObjectInfo(key, facts.st_size, None, facts.st_mtime))
