"""What tells two looks at a checkpoint apart: device, inode, size, mtime and ctime of the resolved target."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MAX_FOLDER_ENTRIES: Final = 100_000
LEAST_SPARSE_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Identity:
    """A look at a file. `content` is what must not change while it is read; ctime alone also moves at a rotation."""

    dev: int
    ino: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> Identity:
        """The identity in a stat result."""
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    @property
    def content(self) -> tuple[int, int, int, int]:
        """(dev, ino, size, mtime_ns): another one means that the bytes may be others."""
        return (self.dev, self.ino, self.size, self.mtime_ns)

    @property
    def changed_at(self) -> float:
        """Unix seconds of the last change of any kind: nobody can set a ctime back, `cp -p` sets an mtime back."""
        return max(self.mtime_ns, self.ctime_ns) / 1e9

    @property
    def text(self) -> str:
        """Size and time of the last write, for people."""
        return f"{self.size} bytes, written at {self.mtime_ns / 1e9:.3f}"

    def __str__(self) -> str:
        return f"{self.dev}:{self.ino}:{self.size}:{self.mtime_ns}:{self.ctime_ns}"


def look_at(path: Path) -> Identity | None:
    """The identity of what `path` leads to, links followed; of a folder, of all that is in it together.

    None: it is not there (any more), is a dangling link, may not be looked at, or is neither file nor folder.
    """
    try:
        found = path.stat()
        if stat.S_ISREG(found.st_mode):
            return Identity.of(found)
        if stat.S_ISDIR(found.st_mode):
            return _folder_identity(path, found)
    except OSError:
        return None
    return None


def is_sparse(path: Path) -> bool:
    """Whether a file has clearly less on disk than its size; a hint only: some file systems compress, or cannot say."""
    try:
        found = path.stat()
    except OSError:
        return False
    return found.st_size > LEAST_SPARSE_BYTES and found.st_blocks * 512 < 0.9 * found.st_size


def _folder_identity(folder: Path, found: os.stat_result) -> Identity:
    """The folder's dev and ino, the sum of all sizes and the latest times; Raises OSError when it is being deleted."""
    size, mtime_ns, ctime_ns = 0, found.st_mtime_ns, found.st_ctime_ns
    todo, seen = [folder], 0
    while todo:
        with os.scandir(todo.pop()) as entries:
            for entry in entries:
                seen += 1
                if seen > MAX_FOLDER_ENTRIES:
                    return Identity(found.st_dev, found.st_ino, size, mtime_ns, ctime_ns)
                each = entry.stat(follow_symlinks=False)
                size += each.st_size
                mtime_ns, ctime_ns = max(mtime_ns, each.st_mtime_ns), max(ctime_ns, each.st_ctime_ns)
                if entry.is_dir(follow_symlinks=False):
                    todo.append(Path(entry.path))
    return Identity(found.st_dev, found.st_ino, size, mtime_ns, ctime_ns)
