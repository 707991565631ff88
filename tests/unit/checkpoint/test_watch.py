"""A training directory is looked at soon after anything happens, and at the latest at the rescan."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from syncd.checkpoint.candidates import Candidate, find_candidates, is_temporary
from syncd.checkpoint.identity import Identity, look_at
from syncd.checkpoint.settle import Settler
from syncd.checkpoint.watch import Watcher

PATTERNS = ("*.pt", "*.ckpt")


def names(found: list[Candidate]) -> list[str]:
    return [each.path.name for each in found]


async def look_until(
    watcher: Watcher, wanted: Callable[[list[Candidate]], bool], within_s: float = 20.0
) -> float:
    """Seconds until a look is as wanted."""
    start = time.monotonic()
    while time.monotonic() - start < within_s:
        if wanted(await watcher.next_look(1.0)):
            return time.monotonic() - start
    raise AssertionError("not seen in time")


def old(path: Path, seconds: float = 3600) -> None:
    """Give a file an old mtime; its ctime stays."""
    os.utime(path, (time.time() - seconds,) * 2)


@pytest.mark.parametrize(
    "name",
    [
        ".tmpAb12",
        "x.pt.tmp",
        "tmp.pth.tar",
        "recovery_tmp.pth.tar",
        ".metadata.tmp",
        "4.orbax-checkpoint-tmp",
        "a.part",
    ],
)
def test_temporary_names_of_libraries_are_no_candidates(name: str) -> None:
    assert is_temporary(name)


@pytest.mark.parametrize(
    "name", ["model.pt", ".metadata", "attempt.pt", "tmpl.pt", "my-tmp-model.pt", "template.ckpt"]
)
def test_other_names_with_tmp_in_them_are_candidates(name: str) -> None:
    assert not is_temporary(name)


def test_globs_choose_and_exclude(tmp_path: Path) -> None:
    for name in (
        "a.pt",
        "b.ckpt",
        "c.txt",
        "skip.pt",
        ".hidden.pt",
        "run/d.pt",
        "checkpoint-3/model.safetensors",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    found = find_candidates(tmp_path, (*PATTERNS, "run/*.pt", "checkpoint-*/"), ("skip*",))
    assert sorted(names(found)) == ["a.pt", "b.ckpt", "checkpoint-3", "d.pt"]
    assert [each.path.name for each in found if each.is_folder] == ["checkpoint-3"]
    assert find_candidates(tmp_path / "missing", PATTERNS) == []


def test_links_and_symlinks_of_one_file_are_one_candidate(tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_text("x")
    (tmp_path / "checkpoint-3.pt").hardlink_to(tmp_path / "last.pt")
    (tmp_path / "best.pt").symlink_to("last.pt")
    (tmp_path / "dangling.pt").symlink_to("nowhere.pt")
    (found,) = find_candidates(tmp_path, ("*.pt",))
    assert found.path.name == "checkpoint-3.pt"
    assert [path.name for path in found.links] == ["last.pt", "best.pt"]


def test_candidates_come_oldest_first(tmp_path: Path) -> None:
    for age, name in ((30, "c.pt"), (20, "a.pt"), (10, "b.pt")):
        (tmp_path / name).write_text("x")
        old(tmp_path / name, age)
    assert names(find_candidates(tmp_path, PATTERNS)) == ["c.pt", "a.pt", "b.pt"]


def test_a_folder_has_another_identity_when_a_file_in_it_grows(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    file = tmp_path / "deep" / "x"
    file.write_text("1")
    before = look_at(tmp_path)
    file.write_text("12")
    assert look_at(tmp_path) != before


def identity(size: int, changed_at: float) -> Identity:
    return Identity(1, 2, size, int(changed_at * 1e9), int(changed_at * 1e9))


def test_an_old_file_is_settled_at_the_first_look() -> None:
    assert Settler(2.0).wait_s(Path("a"), identity(1, 1000.0), now=5.0, wall=1002.5) == 0.0


def test_a_file_that_changes_starts_anew() -> None:
    settler, path = Settler(2.0), Path("a")
    assert settler.wait_s(path, identity(1, 1000.0), now=5.0, wall=1000.5) == pytest.approx(1.5)
    assert settler.wait_s(path, identity(2, 1001.5), now=6.5, wall=1002.0) == pytest.approx(1.5)
    assert settler.wait_s(path, identity(2, 1001.5), now=8.5, wall=1004.0) == 0.0


def test_a_file_from_the_future_settles_by_looking_the_same() -> None:
    settler, path = Settler(2.0), Path("a")
    assert settler.wait_s(path, identity(1, 9000.0), now=5.0, wall=1000.0) == pytest.approx(2.0)
    assert settler.wait_s(path, identity(1, 9000.0), now=7.0, wall=1002.0) == 0.0


def test_without_a_proof_it_waits_twice_as_long_as_writing_took() -> None:
    settler, path = Settler(2.0), Path("a")
    settler.wait_s(path, identity(1, 1000.0), now=0.0, wall=1000.0, proven=False)
    assert settler.wait_s(path, identity(2, 1040.0), now=40.0, wall=1040.0, proven=False) == pytest.approx(
        80.0
    )


def test_a_file_with_less_on_disk_than_its_size_must_be_quiet_longer(tmp_path: Path) -> None:
    with (tmp_path / "a.pt").open("wb") as file:
        file.truncate(1 << 20)
    (tmp_path / "b.pt").write_bytes(bytes(1 << 17))
    found = {each.path.name: each.sparse for each in find_candidates(tmp_path, PATTERNS)}
    assert found == {"a.pt": True, "b.pt": False}
    settler = Settler(2.0)
    assert settler.wait_s(Path("a"), identity(1, 1000.0), now=0.0, wall=1000.0, sparse=True) == pytest.approx(
        10.0
    )


async def test_the_first_look_is_at_once_and_a_new_file_is_seen_before_the_rescan(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_text("x")
    async with Watcher(tmp_path, PATTERNS, rescan_s=600, settle_s=0) as watcher:
        assert names(await watcher.next_look()) == ["a.pt"]
        assert watcher.events
        (tmp_path / "b.pt").write_text("x")
        await look_until(watcher, lambda found: "b.pt" in names(found))


@pytest.mark.parametrize("how", ["link", "symlink", "rename"])
async def test_names_that_appear_without_being_written_are_seen(how: str, tmp_path: Path) -> None:
    folder, outside = tmp_path / "run", tmp_path / "outside"
    folder.mkdir()
    outside.write_text("x")
    async with Watcher(folder, PATTERNS, rescan_s=600, settle_s=0) as watcher:
        assert await watcher.next_look() == []
        if how == "link":
            (folder / "a.pt").hardlink_to(outside)
        elif how == "symlink":
            (folder / "a.pt").symlink_to(outside)
        else:
            outside.rename(folder / "a.pt")
        await look_until(watcher, lambda found: names(found) == ["a.pt"])


async def test_settled_comes_by_itself_when_the_file_is_quiet(tmp_path: Path) -> None:
    async with Watcher(tmp_path, PATTERNS, rescan_s=600, settle_s=0.4) as watcher:
        (tmp_path / "a.pt").write_text("x")
        (first,) = await watcher.next_look()
        assert not first.settled
        took = await look_until(watcher, lambda found: found[0].settled)
        assert 0.2 < took < 10


async def test_a_missing_folder_is_waited_for(tmp_path: Path) -> None:
    folder = tmp_path / "later"
    async with Watcher(folder, PATTERNS, rescan_s=0.2, settle_s=0) as watcher:
        assert await watcher.next_look() == []
        assert not watcher.events
        folder.mkdir()
        (folder / "a.pt").write_text("x")
        await look_until(watcher, lambda found: names(found) == ["a.pt"])
        assert watcher.events


async def test_a_folder_that_is_deleted_and_made_again_gives_events_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    watcher = Watcher(folder, PATTERNS, rescan_s=0.2, settle_s=0)
    try:
        await watcher.next_look()
        shutil.rmtree(folder)
        assert await watcher.next_look(1.0) == []
        folder.mkdir()
        await look_until(watcher, lambda found: watcher.events)
        watcher._rescan_s = watcher._due = 600.0  # from here on only events help
        (folder / "a.pt").write_text("x")
        await look_until(watcher, lambda found: names(found) == ["a.pt"])
    finally:
        await watcher.aclose()


async def test_no_thread_is_left_and_a_quiet_folder_is_not_looked_at(tmp_path: Path) -> None:
    before = {thread.name for thread in threading.enumerate() if "asyncio" not in thread.name}
    async with Watcher(tmp_path, PATTERNS, rescan_s=600, settle_s=0) as watcher:
        await watcher.next_look()
        start = time.monotonic()
        await watcher.next_look(0.5)
        assert time.monotonic() - start >= 0.45
    after = {thread.name for thread in threading.enumerate() if "asyncio" not in thread.name}
    assert after <= before
    await watcher.aclose()


async def test_a_log_that_is_written_all_the_time_causes_few_looks(tmp_path: Path) -> None:
    stop = threading.Event()

    def write() -> None:
        with (tmp_path / "train.log").open("a", buffering=1) as file:
            while not stop.wait(0.005):
                file.write("loss\n")

    writer = threading.Thread(target=write)
    async with Watcher(tmp_path, PATTERNS, rescan_s=600, settle_s=0) as watcher:
        await watcher.next_look()
        writer.start()
        looks, start = 0, time.monotonic()
        while time.monotonic() - start < 2:
            await watcher.next_look(1.0)
            looks += 1
        stop.set()
        writer.join()
    assert 1 <= looks <= 6


async def test_reading_a_checkpoint_is_no_reason_to_look(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_text("x")
    async with Watcher(tmp_path, PATTERNS, rescan_s=600, settle_s=0) as watcher:
        await watcher.next_look()
        await watcher.next_look(0.3)
        (tmp_path / "a.pt").read_text()
        start = time.monotonic()
        await watcher.next_look(0.5)
        assert time.monotonic() - start >= 0.45
