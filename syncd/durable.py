"""Writing files so that a power cut leaves the old or the new, never half: aside, fsync, rename, fsync the folder."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path, mode: int = 0o755) -> None:
    """Create `folder` and its missing parents, each durable in its own parent; one that exists is left alone."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        with contextlib.suppress(FileExistsError):
            each.mkdir()
            each.chmod(mode)
        fsync_folder(each.parent)


@contextlib.contextmanager
def replacing(path: Path, mode: int = 0o644) -> Iterator[int]:
    """Yield a descriptor of a file beside `path`; on a clean exit it replaces `path` durably, else it is removed."""
    descriptor, aside = tempfile.mkstemp(prefix=".part-", dir=path.parent)
    try:
        try:
            os.fchmod(descriptor, mode)
            yield descriptor
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(aside, path)  # noqa: PTH105 - a string from mkstemp
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside)  # noqa: PTH108 - a string from mkstemp
        raise
    fsync_folder(path.parent)


def write_all(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    """Write all of `data` at the descriptor's position, however many calls it takes."""
    left = memoryview(data).cast("B")
    while left:
        left = left[os.write(descriptor, left) :]


def replace_file(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Put `data` at `path` durably: a reader, now or after a power cut, sees the old content or all of the new."""
    with replacing(path, mode) as descriptor:
        write_all(descriptor, data)


def replace_link(link: Path, target: str) -> None:
    """Point the symbolic link `link` at `target` durably and in one step."""
    aside = link.parent / f".part-{os.getpid()}-{link.name}"
    aside.unlink(missing_ok=True)
    aside.symlink_to(target)
    aside.replace(link)
    fsync_folder(link.parent)


def settle_tree(folder: Path, mode: int) -> None:
    """Give every file below `folder` `mode` and every folder 0755, and make every byte and name durable.

    Links are refused by their ELOOP, never followed.
    """
    for each in folder.iterdir():
        if each.is_dir() and not each.is_symlink():
            settle_tree(each, mode)
            continue
        descriptor = os.open(each, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    folder.chmod(0o755)
    fsync_folder(folder)
