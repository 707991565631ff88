"""Training overwrites, rotates and deletes while we read: what is taken is one whole content, or nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from syncd.checkpoint.read import Checkpoint, open_checkpoint
from syncd.errors import (
    CheckpointChanged,
    CheckpointIncomplete,
    CheckpointUnreadable,
    CheckpointVanished,
)

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def checkpoint_path(tmp_path: Path) -> Path:
    path = tmp_path / "last.pt"
    torch.save({"model": {"w": torch.randn(300, 300), "b": torch.ones(300)}}, path)
    return path


def all_bytes(checkpoint: Checkpoint) -> bytes:
    data = bytearray(checkpoint.size)
    checkpoint.pread_into(0, 0, memoryview(data))
    return bytes(data)


def test_a_missing_file_has_vanished(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.pt", tmp_path / "no" / "folder.pt"):
        with pytest.raises(CheckpointVanished):
            open_checkpoint(path)
    (tmp_path / "last.ckpt").symlink_to("epoch=1.ckpt")  # made before its target is there
    with pytest.raises(CheckpointVanished):
        open_checkpoint(tmp_path / "last.ckpt")


def test_a_link_is_read_through_under_its_own_name(checkpoint_path: Path) -> None:
    link = checkpoint_path.with_name("best.pt")
    link.symlink_to(checkpoint_path.name)
    with open_checkpoint(link) as checkpoint:
        assert checkpoint.files[0].path == "best.pt"
        assert all_bytes(checkpoint) == checkpoint_path.read_bytes()


def test_an_empty_file_is_incomplete(tmp_path: Path) -> None:
    (tmp_path / "new.pt").touch()
    with pytest.raises(CheckpointIncomplete):
        open_checkpoint(tmp_path / "new.pt")


def test_a_file_of_another_user_with_mode_0600_says_who_should_publish(checkpoint_path: Path) -> None:
    if os.geteuid() != 0:
        checkpoint_path.chmod(0)
        with pytest.raises(CheckpointUnreadable, match="syncd-publish@USER"):
            open_checkpoint(checkpoint_path)
        return
    program = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path\n"
        "from syncd.checkpoint.read import open_checkpoint; from syncd.errors import CheckpointUnreadable\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: open_checkpoint(Path(sys.argv[2]))\n"
        "except CheckpointUnreadable as error: print(error)\n"
    )
    folder = Path(tempfile.mkdtemp(prefix="syncd-test-"))
    try:
        folder.chmod(0o755)
        path = folder / "model.pt"
        shutil.copyfile(checkpoint_path, path)
        path.chmod(0o600)
        before = path.stat()
        run = subprocess.run(
            [sys.executable, "-c", program, str(REPOSITORY), str(path)],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        assert path.stat() == before
    finally:
        shutil.rmtree(folder)
    assert "checkpoint-unreadable: model.pt is not readable for user 65534" in run.stdout
    assert "syncd-publish@USER" in run.stdout


def test_unchanged_is_told(checkpoint_path: Path) -> None:
    with open_checkpoint(checkpoint_path) as checkpoint:
        assert checkpoint.check_unchanged()
        checkpoint_path.read_bytes()
        assert checkpoint.check_unchanged()


@pytest.mark.parametrize("rotation", ["unlink", "rename", "link", "chmod"])
def test_rotation_changes_the_ctime_alone_and_the_bytes_stay(rotation: str, checkpoint_path: Path) -> None:
    other = checkpoint_path.with_name("other.pt")
    before = checkpoint_path.read_bytes()
    with open_checkpoint(checkpoint_path) as checkpoint:
        if rotation == "unlink":
            checkpoint_path.unlink()
        elif rotation == "rename":
            checkpoint_path.rename(other)
        elif rotation == "link":
            other.hardlink_to(checkpoint_path)
        else:
            checkpoint_path.chmod(0o640)
        assert checkpoint.check_unchanged() is False
        assert all_bytes(checkpoint) == before


def test_truncated_after_opening_it_is_changed_and_nobody_dies(checkpoint_path: Path) -> None:
    with open_checkpoint(checkpoint_path) as checkpoint:
        os.truncate(checkpoint_path, 5000)
        with pytest.raises(CheckpointChanged, match="cut to 5000"):
            all_bytes(checkpoint)
        with pytest.raises(CheckpointChanged):
            checkpoint.check_unchanged()


def test_overwritten_in_place_with_the_same_size_it_is_changed(checkpoint_path: Path) -> None:
    whole = checkpoint_path.read_bytes()
    with open_checkpoint(checkpoint_path) as checkpoint:
        with checkpoint_path.open("r+b") as file:
            file.write(whole)
        with pytest.raises(CheckpointChanged):
            checkpoint.check_unchanged()


def test_replaced_by_rename_the_held_content_stays(checkpoint_path: Path) -> None:
    before = checkpoint_path.read_bytes()
    aside = checkpoint_path.with_name("last.pt.tmp")
    aside.write_bytes(b"something else")
    with open_checkpoint(checkpoint_path) as checkpoint:
        aside.replace(checkpoint_path)
        assert all_bytes(checkpoint) == before
        assert checkpoint.check_unchanged() is False


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_growing_file_is_never_taken_before_its_end(
    legacy: bool, checkpoint_path: Path, tmp_path: Path
) -> None:
    torch.save(torch.load(checkpoint_path), checkpoint_path, _use_new_zipfile_serialization=not legacy)
    whole = checkpoint_path.read_bytes()
    growing = tmp_path / "growing.pt"
    step = len(whole) // 12 + 1
    with growing.open("wb", buffering=0) as file:
        for start in range(0, len(whole), step):
            if start:
                with pytest.raises(CheckpointIncomplete):
                    open_checkpoint(growing)
            file.write(whole[start : start + step])
    with open_checkpoint(growing) as checkpoint:
        assert all_bytes(checkpoint) == whole


@pytest.fixture
def overwriting(tmp_path: Path) -> Iterator[tuple[Path, list[bytes]]]:
    """A file that a thread overwrites in place, again and again, with whole checkpoints, in pieces."""
    contents = []
    for seed in range(3):
        torch.manual_seed(seed)
        torch.save({"model": {"w": torch.randn(700, 700)}}, tmp_path / "one.pt")
        contents.append((tmp_path / "one.pt").read_bytes())
    path, stop = tmp_path / "last.pt", threading.Event()

    def write() -> None:
        turn = 0
        while not stop.is_set():
            whole = contents[turn % len(contents)]
            with path.open("wb", buffering=0) as file:
                for start in range(0, len(whole), 1 << 18):
                    file.write(whole[start : start + (1 << 18)])
                    stop.wait(0.002)
            turn += 1
            stop.wait(0.5)

    writer = threading.Thread(target=write)
    writer.start()
    yield path, contents
    stop.set()
    writer.join()


def test_a_file_that_is_overwritten_all_the_time_is_only_taken_whole(
    overwriting: tuple[Path, list[bytes]],
) -> None:
    path, contents = overwriting
    taken, refused, deadline = 0, 0, time.monotonic() + 60
    while taken < 4 and time.monotonic() < deadline:
        try:
            with open_checkpoint(path) as checkpoint:
                data = all_bytes(checkpoint)
                if checkpoint.check_unchanged():
                    assert data in contents
                    taken += 1
        except (CheckpointChanged, CheckpointIncomplete, CheckpointVanished):
            refused += 1
    print(f"{taken} taken, {refused} refused")
    assert taken >= 4
