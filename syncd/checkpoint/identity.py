"""What tells two looks at a file apart: device, inode, size, mtime and ctime of the resolved target."""

from __future__ import annotations

import os
from dataclasses import dataclass


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
    def text(self) -> str:
        """Size and time of the last write, for people."""
        return f"{self.size} bytes, written at {self.mtime_ns / 1e9:.3f}"
