"""Files that travel with a model: labels, tokenizer, configuration, the golden sample.

They lie flat beside the model on every node, so they go by their base names.
"""

from __future__ import annotations

import fnmatch
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from syncd.errors import CheckpointChanged, Failed

RESERVED: Final = frozenset({"model.safetensors", "model.digests", "head.json", "golden.safetensors"})
MAX_SIDE_FILES: Final = 256


@dataclass(frozen=True)
class SideFile:
    """One open file beside the checkpoint. path: its base name. identity: what it was when it was opened."""

    path: str
    size: int
    fd: int
    identity: tuple[int, ...]

    def pread_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`; CheckpointChanged if the file has become shorter."""
        filled = 0
        while filled < len(buffer):
            count = os.preadv(self.fd, [buffer[filled:]], offset + filled)
            if not count:
                raise CheckpointChanged(
                    f"{self.path} became shorter while it was read", do="it is looked at again"
                )
            filled += count

    def check_unchanged(self) -> None:
        """CheckpointChanged if size or modification time are no longer what they were."""
        if _identity(os.fstat(self.fd)) != self.identity:
            raise CheckpointChanged(f"{self.path} changed while it was read", do="it is looked at again")

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.fd)


def open_side_files(
    checkpoint: Path, watch: Path | None, patterns: Sequence[str], golden: Path | None = None
) -> tuple[SideFile, ...]:
    """Open every side file that `patterns` name, in the order of their names.

    Args:
        checkpoint: the checkpoint; patterns are looked for in its folder (in itself, where it is a directory).
        watch: the watched folder, for a pattern that finds nothing beside the checkpoint.
        patterns: file name patterns, without folders.
        golden: a golden sample computed for this version; it travels as `golden.safetensors`.
    Raises:
        Failed: a pattern finds nothing, a name is reserved or found twice, or a file cannot be read.
    """
    found: dict[str, Path] = {}
    for pattern in patterns:
        matches = _matches(checkpoint if checkpoint.is_dir() else checkpoint.parent, pattern, checkpoint)
        if not matches and watch is not None:
            matches = _matches(watch, pattern, checkpoint)
        if not matches:
            raise Failed(
                f'no side file is called "{pattern}"',
                why="neither the checkpoint's folder nor the watched one has it",
                do="put it there or take it out of side_files; nothing was published",
                path=checkpoint,
            )
        found.update({path.name: path for path in matches})
    if taken := sorted(RESERVED & set(found)):
        raise Failed(
            f"a side file cannot be called {taken[0]}",
            why="syncd writes a file of that name beside the model",
            do="rename it; nothing was published",
        )
    if len(found) > MAX_SIDE_FILES:
        raise Failed(
            f"{len(found)} side files, at most {MAX_SIDE_FILES} travel with a version", do="narrow side_files"
        )
    names = [(name, found[name]) for name in sorted(found)]
    return _open_all([*names, ("golden.safetensors", golden)] if golden else names)


def _open_all(names: Iterable[tuple[str, Path]]) -> tuple[SideFile, ...]:
    opened: list[SideFile] = []
    try:
        for name, path in names:
            opened.append(_open(name, path))
    except BaseException:
        for each in opened:
            each.close()
        raise
    return tuple(opened)


def _open(name: str, path: Path) -> SideFile:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise Failed(
            f"the side file {name} cannot be read: {error.strerror}",
            do="let the publisher's user read it; nothing was published",
            path=path,
        ) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise Failed(f"the side file {name} is not a file", do="take it out of side_files", path=path)
    return SideFile(name, status.st_size, descriptor, _identity(status))


def _matches(folder: Path, pattern: str, checkpoint: Path) -> list[Path]:
    try:
        entries = [
            Path(entry.path) for entry in os.scandir(folder) if fnmatch.fnmatchcase(entry.name, pattern)
        ]
    except OSError:
        return []
    return [path for path in entries if path != checkpoint and path.is_file()]


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
