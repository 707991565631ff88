"""What is next: oldest first, one for each file, bad ones aside, failing ones later, and none forgotten."""

from __future__ import annotations

from pathlib import Path

import pytest

from syncd.errors import (
    ArchitectureRefused,
    CheckpointChanged,
    CheckpointHostile,
    CheckpointIncomplete,
    CheckpointUnreadable,
    CheckpointUnsupported,
    CheckpointVanished,
    DiskFull,
    LostRace,
    ModelAmbiguous,
    SyncdError,
)
from syncd.publisher.queue import LONGEST_WAIT_S, Candidate, Queue, Wait


def candidate(name: str, modified: float = 0.0, *, identity: str = "", settled: bool = True) -> Candidate:
    return Candidate(Path(name), identity or name, modified, settled)


def test_the_oldest_settled_one_comes_first_and_links_count_once() -> None:
    queue = Queue()
    found = [
        candidate("b", 2),
        candidate("a", 1, settled=False),
        candidate("c", 3),
        candidate("d", 4, identity="c"),
    ]
    queue.update(found, done=())
    assert queue.seen == 3
    assert [each.path.name for each in queue.pending] == ["a", "b", "c"]
    first, hurried = queue.next(0.0), queue.next(0.0, hurry=True)
    assert first is not None
    assert hurried is not None
    assert (first.path.name, hurried.path.name) == ("b", "a")
    queue.update(found, done=("b",))
    assert queue.seen == 3
    assert [each.path.name for each in queue.pending] == ["a", "c"]


@pytest.mark.parametrize(
    "kind",
    [CheckpointHostile, CheckpointUnsupported, CheckpointUnreadable, ModelAmbiguous, ArchitectureRefused],
)
def test_what_is_wrong_with_the_file_itself_is_told_once_until_the_file_is_another(
    kind: type[SyncdError],
) -> None:
    queue = Queue()
    queue.update([candidate("a")], done=())
    assert queue.fail(candidate("a"), kind("bad"), 0.0)
    queue.update([candidate("a")], done=())
    assert queue.next(1e9) is None
    assert queue.told() == [{"path": "a", "why": f"{kind.code}: bad"}]
    queue.update([candidate("a", identity="a2")], done=())
    assert queue.told() == []
    assert queue.next(0.0) is not None


@pytest.mark.parametrize(
    "kind", [CheckpointIncomplete, CheckpointChanged, CheckpointVanished, LostRace, DiskFull]
)
def test_what_may_mend_itself_waits_longer_each_time_and_holds_up_nobody(kind: type[SyncdError]) -> None:
    queue, now = Queue(), 100.0
    queue.update([candidate("a", 1), candidate("b", 2)], done=())
    for _failure in range(12):
        queue.fail(candidate("a", 1), kind("later"), now)
        following = queue.next(now)
        assert following is not None
        assert following.path.name == "b"
        assert now < queue.next_at() <= now + LONGEST_WAIT_S
        now = queue.next_at()
        again = queue.next(now)
        assert again is not None
        assert again.path.name == "a"
    assert len(queue.pending) == 2
    assert bool(queue.told()) == (kind is CheckpointIncomplete)


def test_waits_grow_with_jitter_up_to_their_bound() -> None:
    wait, lengths = Wait(), []
    for _failure in range(40):
        wait.longer(0.0)
        lengths.append(wait.until)
    assert 0.5 <= lengths[0] <= 1.0
    assert max(lengths) <= LONGEST_WAIT_S
    assert min(lengths[12:]) >= LONGEST_WAIT_S / 2
    assert len(set(lengths)) > 30
