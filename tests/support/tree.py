"""What lies in a folder, for tests that check that nothing changed."""

from __future__ import annotations

from pathlib import Path


def tree_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Relative path → (mode, content or link target) of everything below `folder`."""
    found = {}
    for path in sorted(folder.rglob("*")):
        content = b""
        if path.is_symlink():
            content = str(path.readlink()).encode()
        elif path.is_file():
            content = path.read_bytes()
        found[str(path.relative_to(folder))] = (path.lstat().st_mode, content)
    return found
