"""Reports that a malicious member of the group could leave for the daemon: none costs it more than a vote."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from syncd.node.followers import MAX_FOLLOWERS, MAX_REPORT_BYTES, FollowerReport, read_followers, register
from syncd.node.links import ModelFolder, NodeFolder
from tests.support.tree import tree_of

GOOD: dict[str, Any] = {
    "format": "syncd.follower/1",
    "pid": 1,
    "version": 41,
    "vote": {"version": 42, "verdict": "accept", "reason": "", "attempt": 1},
    "voter": True,
    "held": False,
    "predictions": 1,
    "errors": 0,
    "nonfinite": 0,
    "p50_ms": 1.0,
    "p99_ms": None,
}


@pytest.fixture
def folder(tmp_path: Path) -> ModelFolder:
    NodeFolder(tmp_path / "node").make()
    made = NodeFolder(tmp_path / "node").model_folder("resnet50")
    made.make()
    return made


def read_with(folder: ModelFolder, plant: Callable[[Path], Any]) -> FollowerReport:
    """What the daemon makes of a living follower whose report `plant` left at the path that it is given."""
    follower = register(folder)
    plant(folder.followers / f"{follower.id}.json")
    began = time.monotonic()
    (found,) = read_followers(folder)
    assert time.monotonic() - began < 5.0
    assert found.id == follower.id
    assert found.pid == os.getpid()
    follower.close()
    return found


def changed(**fields: Any) -> str:
    return json.dumps({**GOOD, **fields})


def vote(**fields: Any) -> str:
    return changed(vote={**GOOD["vote"], **fields})


def test_the_good_report_is_believed(folder: ModelFolder) -> None:
    found = read_with(folder, lambda path: path.write_text(changed(unknown="is ignored")))
    assert not found.invalid
    assert found.vote is not None
    assert found.version == 41


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        "\0" * 100,
        "[" * 8000,
        '{"format":' * 1500,
        changed(format="syncd.follower/2"),
        changed(version=0),
        changed(version=-1),
        changed(version=2**53),
        changed(version=True),
        changed(version="41"),
        changed(version=1.5),
        changed(voter=1),
        changed(held=None),
        changed(predictions=-1),
        changed(predictions=2**64),
        changed(errors="many"),
        changed(nonfinite=[1]),
        changed(p50_ms=-1),
        changed(p50_ms=1e13),
        changed(p99_ms="fast"),
        changed(p99_ms=float("nan")),
        changed(p99_ms=float("inf")),
        changed(why="x" * 1001),
        changed(vote=[]),
        vote(verdict="maybe"),
        vote(verdict=["accept"]),
        vote(verdict={}),
        vote(version=None),
        vote(attempt=10**9),
        vote(reason=7),
        vote(reason="x" * 1001),
        "1" * 5000,
    ],
)
def test_a_report_against_the_schema_is_one_without_a_vote(folder: ModelFolder, text: str) -> None:
    found = read_with(folder, lambda path: path.write_text(text))
    assert found.invalid
    assert found.vote is None
    assert found.why
    assert found.voter


def test_a_report_that_is_no_text_is_one_without_a_vote(folder: ModelFolder) -> None:
    assert read_with(folder, lambda path: path.write_bytes(b'{"format":"\xff\xfe"}')).invalid


def test_a_huge_report_is_not_read(folder: ModelFolder) -> None:
    def plant(path: Path) -> None:
        with path.open("wb") as file:
            file.write(changed().encode())
            file.truncate(2**40)

    found = read_with(folder, plant)
    assert found.invalid
    assert f"more than {MAX_REPORT_BYTES}" in found.why


def test_a_link_to_a_secret_is_not_followed(folder: ModelFolder, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text(changed())
    found = read_with(folder, lambda path: path.symlink_to(secret))
    assert found.invalid
    assert secret.read_text() == changed()


@pytest.mark.parametrize("plant", [os.mkfifo, os.mkdir], ids=["a pipe", "a folder"])
def test_what_is_no_regular_file_is_not_waited_on(folder: ModelFolder, plant: Callable[[Path], None]) -> None:
    assert read_with(folder, plant).invalid


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away needs root")
def test_a_report_that_another_user_left_is_not_believed(folder: ModelFolder) -> None:
    def plant(path: Path) -> None:
        path.write_text(changed())
        os.chown(path, 65534, -1)

    found = read_with(folder, plant)
    assert found.invalid
    assert "belongs to user 65534" in found.why


def test_locks_that_are_links_pipes_or_folders_are_no_followers(folder: ModelFolder, tmp_path: Path) -> None:
    outside = tmp_path / "outside.lock"
    outside.write_text("kept")
    (folder.followers / f"1-1-{'a' * 16}.lock").symlink_to(outside)
    os.mkfifo(folder.followers / f"2-1-{'b' * 16}.lock")
    (folder.followers / f"3-1-{'c' * 16}.lock").mkdir()
    assert read_followers(folder) == []
    assert outside.read_text() == "kept"


def test_names_that_are_no_ids_are_left_alone(folder: ModelFolder) -> None:
    for name in ("notes.txt", "..json", "1-1-xyz.json", f"0-1-{'a' * 16}.lock", f"1-1-{'a' * 17}.json"):
        (folder.followers / name).write_text("{}")
    before = tree_of(folder.followers)
    assert read_followers(folder) == []
    assert tree_of(folder.followers) == before


def test_a_flood_of_names_costs_a_bounded_look(folder: ModelFolder) -> None:
    for number in range(MAX_FOLLOWERS * 9):
        (folder.followers / f"{number + 1}-1-{'a' * 16}.json").touch()
    began = time.monotonic()
    assert read_followers(folder) == []
    assert time.monotonic() - began < 10.0
    left = len(list(folder.followers.iterdir()))
    assert left >= MAX_FOLLOWERS * 8 - 1
