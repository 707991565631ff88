"""Which names in a training directory are candidates: globs, minus what libraries use as temporary names."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from syncd.checkpoint.identity import Identity, is_sparse, look_at

_TEMPORARY: Final = ("*.tmp", "*.part", "tmp.*", "*_tmp.*", "*-tmp")


@dataclass(frozen=True)
class Candidate:
    """A checkpoint that may be there. `links`: other names of the same file, published with it, once.

    `sparse`: less on disk than its size: perhaps still being filled. `settled`: quiet for long enough to be read.
    """

    path: Path
    identity: Identity
    is_folder: bool
    links: tuple[Path, ...] = ()
    sparse: bool = False
    settled: bool = False

    @property
    def modified(self) -> float:
        """Unix seconds of the last write."""
        return self.identity.mtime_ns / 1e9


def is_temporary(name: str) -> bool:
    """Whether a library writes under this name before it renames; `.metadata` marks a finished folder."""
    if name.startswith("."):
        return name != ".metadata"
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _TEMPORARY)


def find_candidates(folder: Path, include: Sequence[str], exclude: Sequence[str] = ()) -> list[Candidate]:
    """The candidates in `folder`, oldest first; one for each file, however many links it has.

    A glob that ends in `/` means folders, any other means files; both are relative to `folder`. What vanishes
    meanwhile is left out, and so is a folder that is not there.
    """
    excluded = {path for pattern in exclude for path in _glob(folder, pattern)}
    by_inode: dict[tuple[int, int], list[tuple[Path, Identity, bool]]] = {}
    for pattern in include:
        for path in set(_glob(folder, pattern)) - excluded:
            if any(is_temporary(part) for part in path.relative_to(folder).parts):
                continue
            is_folder = pattern.endswith("/")
            identity = look_at(path) if path.is_dir() == is_folder else None
            if identity is not None:
                same = by_inode.setdefault((identity.dev, identity.ino), [])
                if all(path != known for known, _, _ in same):
                    same.append((path, identity, is_folder))
    found = []
    for same in by_inode.values():
        same.sort(key=lambda each: _preference(each[0]))
        path, identity, is_folder = same[0]
        links = tuple(other for other, _, _ in same[1:])
        found.append(Candidate(path, identity, is_folder, links, sparse=not is_folder and is_sparse(path)))
    return sorted(found, key=lambda each: (each.identity.mtime_ns, str(each.path)))


def _glob(folder: Path, pattern: str) -> Iterable[Path]:
    try:
        return list(folder.glob(pattern))
    except OSError:  # a folder was deleted under us
        return ()


def _preference(path: Path) -> tuple[bool, bool, str]:
    """A real name before a symbolic link, a numbered name (`epoch=3.ckpt`) before `last.ckpt`."""
    return path.is_symlink(), not any(letter.isdigit() for letter in path.name), str(path)
