"""Small real disks: an ext4 in a file, loop-mounted. For tests marked root."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def mounted_image(image: Path, size: int) -> Iterator[Path]:
    """Make an ext4 of `size` bytes at `image`, mount it beside and yield the mount point.

    It commits nothing by itself for five minutes, so that what nobody fsynced is not there after a power cut.
    """
    with image.open("wb") as file:
        file.truncate(size)
    _run("mkfs.ext4", "-q", "-m", "0", str(image))
    with _mounted(image, "loop,commit=300") as mount:
        yield mount


@contextlib.contextmanager
def after_power_cut(image: Path) -> Iterator[Path]:
    """Yield a mount of a copy of `image` as it is on disk now, mounted or not: what a power cut would leave."""
    copy = image.with_name(f"{image.name}-cut")
    shutil.copyfile(image, copy)
    with _mounted(copy, "loop") as mount:
        yield mount


@contextlib.contextmanager
def _mounted(image: Path, options: str) -> Iterator[Path]:
    mount = image.with_name(f"{image.name}-mount")
    mount.mkdir(exist_ok=True)
    _run("mount", "-o", options, str(image), str(mount))
    try:
        yield mount
    finally:
        if mount.is_mount():
            _run("umount", str(mount))


def remount_read_only(mount: Path) -> None:
    """Take the right to write away from everyone, root too."""
    _run("mount", "-o", "remount,ro", str(mount))


@contextlib.contextmanager
def frozen(mount: Path) -> Iterator[None]:
    """A disk on which every write hangs until the block ends."""
    _run("fsfreeze", "-f", str(mount))
    try:
        yield
    finally:
        _run("fsfreeze", "-u", str(mount))


def unmount(mount: Path) -> None:
    """Take the disk away; the mount point stays behind, empty."""
    _run("umount", str(mount))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=60)
