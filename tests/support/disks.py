"""Small real disks: an ext4 in a file, loop-mounted. For tests marked root."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def mounted_image(image: Path, size: int) -> Iterator[Path]:
    """Make an ext4 of `size` bytes at `image`, mount it beside and yield the mount point."""
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", str(image)], check=True, timeout=30)
    mount = image.with_name(f"{image.name}-mount")
    mount.mkdir()
    subprocess.run(["mount", "-o", "loop", str(image), str(mount)], check=True, timeout=30)
    try:
        yield mount
    finally:
        subprocess.run(["umount", str(mount)], check=True, timeout=30)
