"""Followers: registering, reporting, voting, dying."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from syncd.node.followers import (
    FollowerReport,
    Vote,
    count_votes,
    failed_votes,
    read_followers,
    register,
)
from syncd.node.links import ModelFolder, NodeFolder
from tests.support.tree import tree_of

REPORT = FollowerReport(
    version=41,
    vote=Vote(42, "accept", "", 1),
    predictions=1000,
    errors=1,
    nonfinite=2,
    p50_ms=1.5,
    p99_ms=9.25,
    why="it rained",
)


@pytest.fixture
def folder(tmp_path: Path) -> ModelFolder:
    NodeFolder(tmp_path).make()
    made = NodeFolder(tmp_path).model_folder("resnet50")
    made.make()
    return made


def test_a_report_is_read_as_it_was_written(folder: ModelFolder) -> None:
    follower = register(folder)
    assert re.fullmatch(rf"{os.getpid()}-\d+-[0-9a-f]{{16}}", follower.id)
    follower.write(REPORT)
    follower.write(replace(REPORT, predictions=1001))
    assert read_followers(folder) == [replace(REPORT, predictions=1001, id=follower.id, pid=os.getpid())]
    follower.close()
    assert read_followers(folder) == []
    assert list(folder.followers.iterdir()) == []


def test_a_living_follower_without_a_report_is_there_and_has_not_voted(folder: ModelFolder) -> None:
    with_nothing = register(folder)
    (found,) = read_followers(folder)
    assert (found.id, found.vote, found.invalid) == (with_nothing.id, None, True)
    assert count_votes([found], 42, 1).waiting == (with_nothing.id,)
    with_nothing.close()


def test_a_killed_follower_is_swept_by_the_daemon(folder: ModelFolder) -> None:
    program = (
        "import os, signal, sys; from syncd.node.followers import *; from syncd.node.links import NodeFolder\n"
        "follower = register(NodeFolder(sys.argv[1]).model_folder('resnet50'))\n"
        "follower.write(FollowerReport(version=1)); print(follower.id, flush=True); sys.stdin.read()"
    )
    node = str(folder.path.parent.parent)
    with subprocess.Popen(
        [sys.executable, "-c", program, node], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        name = child.stdout.readline().strip()
        assert [(report.id, report.pid) for report in read_followers(folder)] == [(name, child.pid)]
        child.kill()
    assert read_followers(folder, sweep=False) == []
    assert {path.name for path in folder.followers.iterdir()} == {f"{name}.json", f"{name}.lock"}
    assert read_followers(folder) == []
    assert list(folder.followers.iterdir()) == []


def test_the_last_words_against_a_version_are_heard_once(folder: ModelFolder) -> None:
    follower = register(folder)
    follower.write(replace(REPORT, version=None, vote=Vote(42, "failed", "golden: differs", 0)))
    follower.abandon()
    (found,) = read_followers(folder)
    assert not found.alive
    assert failed_votes([found], 42) == [(follower.id, "golden: differs")]
    assert read_followers(folder) == []
    assert list(folder.followers.iterdir()) == []


def test_who_may_not_write_there_cannot_register_and_changes_nothing(tmp_path: Path) -> None:
    nowhere = NodeFolder(tmp_path).model_folder("resnet50")
    before = tree_of(tmp_path)
    with pytest.raises(FileNotFoundError):
        register(nowhere)
    assert tree_of(tmp_path) == before


def test_votes_are_counted_for_this_version_and_attempt_alone() -> None:
    reports = [
        FollowerReport(id="accepts", vote=Vote(42, "accept", "", 2)),
        FollowerReport(id="is-held", held=True),
        FollowerReport(id="serves-it", version=42),
        FollowerReport(id="only-follows", voter=False),
        FollowerReport(id="only-follows-against", voter=False, vote=Vote(42, "refuse", "no", 2)),
        FollowerReport(id="silent"),
        FollowerReport(id="accepted-before", vote=Vote(42, "accept", "", 1)),
        FollowerReport(id="refused-before", vote=Vote(42, "refuse", "too slow", 1)),
        FollowerReport(id="another-version", vote=Vote(41, "accept", "", 2)),
        FollowerReport(id="refuses", vote=Vote(42, "refuse", "golden: differs", 2)),
    ]
    tally = count_votes(reports, 42, 2)
    assert tally.accepted == ("accepts", "is-held", "serves-it")
    assert tally.refused == (("refuses", "golden: differs"),)
    assert tally.waiting == ("silent", "accepted-before", "refused-before", "another-version")
    assert not tally.all_accepted
    assert count_votes([], 42, 1).all_accepted


def test_a_reason_that_is_too_long_is_cut_and_control_characters_are_blanks(folder: ModelFolder) -> None:
    follower = register(folder)
    follower.write(replace(REPORT, vote=Vote(42, "refuse", "\x1b[31m" + "long " * 1000, 1)))
    (found,) = read_followers(folder)
    assert not found.invalid
    assert found.vote is not None
    assert found.vote.reason.startswith(" [31mlong long")
    assert len(found.vote.reason) == 1000
    follower.close()
