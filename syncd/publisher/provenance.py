"""Where a checkpoint comes from: the git commit of its folder, read from git's own files, and syncd's version.

Neither the host's name nor the user's goes into a head: heads are read by everybody who may read the store.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import syncd

_COMMIT: Final = re.compile(r"^[0-9a-f]{40}([0-9a-f]{24})?$")
_REFERENCE: Final = re.compile(r"^ref: (refs/[\w./+@-]{1,512})$")
_MAX_PARENTS: Final = 64
_MAX_SMALL_FILE: Final = 4096
_MAX_PACKED_REFS: Final = 16 * 2**20


def provenance(folder: Path, scalars: Mapping[str, int | float | str | bool]) -> dict[str, Any]:
    """What a head says of a version's origin: syncd's version, the git commit of `folder`, epoch, step and the like."""
    found: dict[str, Any] = {"syncd": syncd.__version__}
    commit = git_commit(folder)
    if commit:
        found["git_commit"] = commit
    if scalars:
        found["scalars"] = dict(scalars)
    return found


def git_commit(folder: Path) -> str | None:
    """The commit that is checked out where `folder` lies; None outside a repository and wherever git's files differ.

    No git is run: a repository's own configuration can name programs, and training folders belong to others.
    """
    repository = _git_folder(folder)
    if repository is None:
        return None
    head = _read(repository / "HEAD", _MAX_SMALL_FILE).strip()
    if _COMMIT.match(head):
        return head
    reference = _REFERENCE.match(head)
    if not reference or ".." in reference[1]:
        return None
    common = _common_folder(repository)
    for place in (repository, common):
        commit = _read(place / reference[1], _MAX_SMALL_FILE).strip()
        if _COMMIT.match(commit):
            return commit
    for line in _read(common / "packed-refs", _MAX_PACKED_REFS).splitlines():
        commit, _, name = line.partition(" ")
        if name == reference[1] and _COMMIT.match(commit):
            return commit
    return None


def _git_folder(folder: Path) -> Path | None:
    """The `.git` folder of the work tree that holds `folder`; in a linked work tree `.git` is a file that names it."""
    try:
        here = folder.resolve()
    except OSError:
        return None
    for place in (here, *here.parents)[:_MAX_PARENTS]:
        candidate = place / ".git"
        try:
            if candidate.is_dir():
                return candidate
            if candidate.is_file():
                line = _read(candidate, _MAX_SMALL_FILE).strip()
                return (place / line.removeprefix("gitdir: ")) if line.startswith("gitdir: ") else None
        except OSError:
            return None
    return None


def _common_folder(repository: Path) -> Path:
    line = _read(repository / "commondir", _MAX_SMALL_FILE).strip()
    return (repository / line) if line else repository


def _read(path: Path, limit: int) -> str:
    try:
        if not path.is_file() or path.stat().st_size > limit:
            return ""
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
