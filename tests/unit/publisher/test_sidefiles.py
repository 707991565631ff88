"""Side files are found beside the checkpoint or in the watched folder, held open, and refused by name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from syncd.errors import CheckpointChanged, Failed
from syncd.publisher.sidefiles import open_side_files


def test_a_pattern_is_looked_for_beside_the_checkpoint_first_then_in_the_watched_folder(
    tmp_path: Path,
) -> None:
    run = tmp_path / "7"
    run.mkdir()
    checkpoint = run / "step.pt"
    for path, text in (
        (checkpoint, "x"),
        (run / "labels.txt", "near"),
        (tmp_path / "labels.txt", "far"),
        (tmp_path / "vocab.json", "v"),
    ):
        path.write_text(text)
    opened = open_side_files(checkpoint, tmp_path, ("labels.txt", "*.json"))
    assert [(side.path, side.size) for side in opened] == [("labels.txt", 4), ("vocab.json", 1)]
    buffer = bytearray(4)
    opened[0].pread_into(0, memoryview(buffer))
    assert buffer == b"near"
    for side in opened:
        side.close()


@pytest.mark.parametrize("name", ["model.safetensors", "head.json", "model.digests", "golden.safetensors"])
def test_a_name_that_syncd_writes_itself_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(Failed, match=name):
        open_side_files(tmp_path / "step.pt", None, (name,))


def test_a_pattern_that_finds_nothing_is_an_error_that_names_it_and_no_descriptor_stays_open(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.txt").write_text("a")
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counts descriptors
    with pytest.raises(Failed, match="labels"):
        open_side_files(tmp_path / "step.pt", tmp_path, ("a.txt", "labels.*"))
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_side_file_that_changes_while_it_is_read_drops_the_attempt(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\n")
    (side,) = open_side_files(tmp_path / "step.pt", None, ("labels.txt",))
    side.check_unchanged()
    (tmp_path / "labels.txt").write_text("c")
    with pytest.raises(CheckpointChanged, match=r"labels\.txt"):
        side.check_unchanged()
    with pytest.raises(CheckpointChanged, match=r"labels\.txt"):
        side.pread_into(0, memoryview(bytearray(4)))
    side.close()
