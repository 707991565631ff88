"""What may go from a node: versions beyond `keep` that nobody uses, and what failed attempts left in `incoming/`."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from syncd.node.links import LINKS, ModelFolder
from syncd.state import installed
from syncd.state.db import Database


def retire_versions(folder: ModelFolder, db: Database, keep: int, refused: set[int]) -> list[int]:
    """Delete installed versions: quarantined ones, and all but the newest `keep`.

    What a link points at or a process has locked stays, and is looked at again the next time.
    Returns: the versions that went.
    """
    linked = {folder.read_link(name) for name in LINKS}
    good = [version for version in folder.versions() if version not in refused]
    kept = set(good[-keep:]) | linked
    gone = []
    for version in folder.versions():
        if version not in kept and folder.remove_version(version):
            installed.forget_installed(db, folder.model, version)
            gone.append(version)
    return gone


def clear_incoming(folder: ModelFolder, keep: int | None = None) -> None:
    """Delete everything under `incoming/` but what belongs to version `keep`."""
    with contextlib.suppress(FileNotFoundError):
        for each in folder.incoming.iterdir():
            if keep is None or each.name != str(keep):
                _remove(each)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
