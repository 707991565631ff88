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
import hashlib
import os
import stat
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import ParamSpec, TypeVar

from syncd.durable import make_folder
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
from syncd.store.descriptors import (
    READ_FOLDER,
    aside_file,
    collect,
    locked,
    make_folder_at,
    opened,
    read_exactly,
    sweep,
)

P = ParamSpec("P")
T = TypeVar("T")

IO_WITHIN_S = 120.0
"""A folder that does not answer for so long is a mount that hangs."""
_MARKER = ".syncd-store"
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
        self._swept: set[str] = set()
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
        try:
            async with asyncio.timeout(IO_WITHIN_S):
                return await asyncio.to_thread(call, *args, **kwargs)
        except TimeoutError:
            raise StoreUnreachable(
                f"{self.root} has not answered for {IO_WITHIN_S:.0f} s",
                why="a network mount or a disk hangs",
                do="look after it; a put may still land",
                store=self.url,
            ) from None

    # Everything below blocks, and runs in a thread.

    def _read(self, key: str, limit: int) -> bytes:
        with self._told(key, "read"), self._object(key) as (descriptor, size):
            if size > limit:
                raise ObjectTooLarge(f"{key} has {size} bytes, at most {limit} are taken", store=self.url)
            return read_exactly(descriptor, 0, size)

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
            return read_exactly(descriptor, start, length)

    def _look(self, key: str) -> ObjectInfo:
        with self._told(key, "look at"), self._object(key) as (descriptor, size):
            digest = hashlib.sha256()
            for start in range(0, size, 1 << 20):
                digest.update(read_exactly(descriptor, start, min(1 << 20, size - start)))
            return ObjectInfo(key, size, digest.hexdigest(), os.fstat(descriptor).st_mtime)

    def _put(self, key: str, data: bytes, mode: Mode) -> str:
        with self._told(key, "write"):
            if self._is_absent():
                raise self._absent()
            try:
                self._put_file(key, data, mode)
            except FileNotFoundError:
                if isinstance(mode, IfMatch) and not self._is_absent():
                    raise ObjectChanged(f"{key} is not there", store=self.url, key=key) from None
                raise
        return _etag(data)

    def _put_file(self, key: str, data: bytes, mode: Mode) -> None:
        parent, _, name = key.rpartition("/")
        with self._folder(key, make=not isinstance(mode, IfMatch)) as folder:
            if parent not in self._swept:
                self._swept.add(parent)
                sweep(folder)
            if isinstance(mode, Create):
                with aside_file(folder, data, self._permissions()) as aside:
                    self._link(folder, aside, name, key)
                return
            with locked(folder, self.url):
                if isinstance(mode, IfMatch):
                    self._expect(folder, name, key, mode.etag)
                with aside_file(folder, data, self._permissions()) as aside:
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
            with opened(name, folder) as (descriptor, size):
                found = _etag(read_exactly(descriptor, 0, size)) if size <= MAX_OBJECT_BYTES else "too large"
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
                locked(folder, self.url),
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
                collect(folder, prefix, found)
        return tuple(found)

    @contextlib.contextmanager
    def _folder(self, key: str, *, make: bool = False) -> Iterator[int]:
        """A descriptor of the folder that holds `key`, reached without following a link below the root."""
        at = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in key.split("/")[:-1]:
                try:
                    below = os.open(name, READ_FOLDER, dir_fd=at)
                except FileNotFoundError:
                    if not make:
                        raise
                    make_folder_at(name, at, self.root.stat().st_mode & 0o7777)
                    below = os.open(name, READ_FOLDER, dir_fd=at)
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
        with self._folder(key) as folder, opened(key.rpartition("/")[2], folder) as found:
            yield found

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
