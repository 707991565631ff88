"""Retention on a real store with its clock in hand: what is kept, what goes, when, and what happens on the way."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from syncd.cli.setup import run_init
from syncd.config import KeepSection, StoreSection
from syncd.errors import NotAuthentic
from syncd.publisher.commit import ModelRepository
from syncd.publisher.pending import commit_pending, leave_pending
from syncd.publisher.pipeline import Publisher
from syncd.publisher.retention import CRASH_POINTS, Swept, sweep
from syncd.state.db import Database
from syncd.store.folder import FolderStore
from tests.support.publishing import MODEL, Publishing, make_publishing, read_back, save_checkpoint
from tests.support.signed_store import SignedStore, disk

DAY_S = 86400.0
TWO = KeepSection(versions=2, training_state=1)


@pytest.fixture
async def publishing(tmp_path: Path) -> Publishing:
    return await make_publishing(tmp_path)


async def publish(
    publishing: Publishing, *seeds: int, channel: str = "latest", training: bool = True
) -> None:
    import torch

    for seed in seeds:
        path = publishing.runs / f"{seed}.pt"
        if training:
            save_checkpoint(path, seed=seed, head_only=True)
        else:
            torch.manual_seed(seed)
            torch.save(torch.nn.Linear(300, 300).state_dict(), path)
        await publishing.publish(path, channel=channel)


async def sweep_after(
    publishing: Publishing, days: float, keep: KeepSection | None = TWO
) -> tuple[Swept, ModelRepository]:
    repository = await publishing.signed.repository(MODEL)
    swept = await sweep(repository, keep, clock=lambda: time.time() + days * DAY_S)
    return swept, repository


def kept(repository: ModelRepository) -> list[int]:
    return [each.version for each in repository.index.versions]


async def test_versions_are_retired_by_a_commit_whole_for_a_day_and_gone_after_it(
    publishing: Publishing,
) -> None:
    await publish(publishing, 1, 2, 3, 4)
    before = publishing.packs()
    swept, repository = await sweep_after(publishing, 0)
    assert (swept, kept(repository)) == (Swept(retired=(1, 2)), [3, 4])
    assert publishing.packs() == before
    for version in (1, 2):  # a download that runs may finish
        assert read_back(publishing.model_folder, version).files() == {
            f"{version}.pt": (publishing.runs / f"{version}.pt").read_bytes()
        }
    swept, _ = await sweep_after(publishing, 0.9)
    assert swept == Swept()
    swept, repository = await sweep_after(publishing, 1.1)
    assert swept.gone == (1, 2)
    assert swept.bytes > 0
    assert repository.index.retired == ()
    assert len(publishing.packs()) < len(before)
    assert not (publishing.model_folder / "versions/1/head.json").exists()
    assert (publishing.model_folder / "versions/1/claim").exists(), "a number is given once"
    for version in (3, 4):  # packs that 1 made and they refer to are theirs too
        assert read_back(publishing.model_folder, version).files() == {
            f"{version}.pt": (publishing.runs / f"{version}.pt").read_bytes()
        }
    assert (await sweep_after(publishing, 1.2))[0] == Swept()


async def test_what_a_channel_names_and_the_newest_training_state_survive_everything(
    publishing: Publishing,
) -> None:
    await publish(publishing, 1, channel="stable")
    await publish(publishing, 2)
    await publish(publishing, 3, 4, 5, 6, training=False)
    one = KeepSection(versions=1, training_state=1)
    await sweep_after(publishing, 0, one)
    swept, repository = await sweep_after(publishing, 30, one)
    assert swept.gone == (3, 4, 5)
    assert kept(repository) == [1, 2, 6]
    for version in (1, 2, 6):
        assert read_back(publishing.model_folder, version).files()
    await repository.promote(6, "stable")
    await sweep_after(publishing, 30, one)
    _, repository = await sweep_after(publishing, 60, one)
    assert kept(repository) == [2, 6]


async def test_without_the_section_nothing_is_retired_ever(publishing: Publishing) -> None:
    await publish(publishing, 1, 2, 3)
    packs = publishing.packs()
    swept, repository = await sweep_after(publishing, 4000, None)
    assert (swept.retired, kept(repository), publishing.packs()) == ((), [1, 2, 3], packs)


async def test_a_checkpoint_of_a_retired_version_published_again_lies_in_packs_of_its_own(
    publishing: Publishing,
) -> None:
    """The old packs go a day later: a new version that referred to them would lose its bytes."""
    await publish(publishing, 1, 2, 3)
    _, repository = await sweep_after(publishing, 0)
    assert kept(repository) == [2, 3]
    condemned = set(publishing.packs())
    result = await publishing.publish(publishing.runs / "1.pt")
    assert (result.version, result.new) == (4, True)
    await sweep_after(publishing, 1.1)
    swept, _ = await sweep_after(publishing, 2.5)
    assert swept.gone
    original = (publishing.runs / "1.pt").read_bytes()
    found = read_back(publishing.model_folder, 4)
    assert found.files() == {"1.pt": original}
    assert {pack.removeprefix("sha256:") for pack in found.table.packs} - condemned


async def test_orphans_go_after_seven_days_and_numbers_are_never_signed_twice(publishing: Publishing) -> None:
    await publish(publishing, 1, 2)
    folder = publishing.model_folder
    stray = folder / "packs" / ("0" * 64)
    stray.write_bytes(b"of a publisher that never came back")
    (folder / "notes.txt").write_bytes(b"somebody's")
    ahead = folder / "metadata" / "99.channel-latest.json"
    shutil.copy(folder / "metadata" / "2.channel-latest.json", ahead)
    assert (await sweep_after(publishing, 6.9))[0] == Swept()
    assert stray.exists()
    swept, _ = await sweep_after(publishing, 7.1)
    assert not stray.exists()
    assert swept.objects >= 2
    assert (folder / "notes.txt").exists(), "what is not ours stays"
    assert ahead.exists(), "a number above the committed one may not be signed a second time"
    names = {path.name for path in (folder / "metadata").iterdir()}
    assert {"1.root.json", "2.root.json", "timestamp.json"} <= names
    assert "2.snapshot.json" not in names
    await publish(publishing, 3)
    assert (await publishing.index()).find(3)
    for version in (1, 2, 3):
        assert read_back(folder, version).files()


async def test_a_document_that_was_tampered_with_stops_the_pass_before_anything_is_deleted(
    publishing: Publishing,
) -> None:
    await publish(publishing, 1, 2, 3)
    await sweep_after(publishing, 0)
    (table,) = [publishing.head(3).table.digest.removeprefix("sha256:")]
    path = publishing.model_folder / "tables" / table
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    before = disk(publishing.signed.folder)
    with pytest.raises(NotAuthentic):
        await sweep_after(publishing, 30)
    assert disk(publishing.signed.folder) == before


async def test_a_running_publisher_retires_what_is_too_much_after_each_release(
    publishing: Publishing,
) -> None:
    section = publishing.section(keep={"versions": 1, "training_state": 1}, backfill="all")
    publisher = Publisher(
        section,
        store=publishing.signed.store,
        trust_root=publishing.signed.root,
        keys=publishing.signed.keys,
        db=publishing.db,
        folder=publishing.base / "publisher-state",
    )
    running = asyncio.create_task(publisher.run(asyncio.Event()))
    try:
        for seed in (1, 2, 3):
            save_checkpoint(publishing.runs / f"{seed}.pt", seed=seed, head_only=True)
            async with asyncio.timeout(120):
                while kept(await publishing.signed.repository(MODEL)) != [seed]:
                    assert not running.done(), running
                    await asyncio.sleep(0.1)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    index = await publishing.index()
    assert [each.version for each in index.retired] == [1, 2]
    told = publishing.db.rows("SELECT data FROM events WHERE kind='retired'")
    assert len(told) == 2


async def test_a_release_that_waits_keeps_its_version_from_being_retired(tmp_path: Path) -> None:
    section = StoreSection(url=f"file://{tmp_path}/store")
    words = {
        "models": [MODEL],
        "keys": tmp_path / "keys",
        "own_key": ["stable"],
        "config": tmp_path / "c.toml",
    }
    made = await asyncio.to_thread(run_init, section, **words)  # type: ignore[arg-type]
    store = FolderStore(tmp_path / "store")
    signed = SignedStore(tmp_path / "store", tmp_path / "keys", store, made.root.read_bytes())
    (tmp_path / "state").mkdir()
    with Database(tmp_path / "state/state.db") as db:
        publishing = Publishing(signed, tmp_path, db)
        await publish(publishing, 1, 2, 3)
        repository = await signed.repository(MODEL)
        await leave_pending(repository, repository.promotion(1, "stable"), tmp_path / "keys")
        one = KeepSection(versions=1, training_state=1)
        _, repository = await sweep_after(publishing, 0, one)
        assert kept(repository) == [1, 3]
        done = await commit_pending(repository)
        assert [(each.version, each.channel) for each in done.releases] == [(1, "stable")]


SWEEP = """
import asyncio, sys, time
from pathlib import Path
from syncd.config import KeepSection
from syncd.publisher.commit import open_model
from syncd.publisher.retention import sweep
from tests.support.signed_store import open_folder

async def main(base, days):
    root = (base / "store/fleet/1.root.json").read_bytes()
    repository = await open_model(open_folder(base / "store"), "m", root, base / "keys", base / "collector")
    await sweep(repository, KeepSection(versions=2, training_state=1), clock=lambda: time.time() + 86400 * days)

asyncio.run(main(Path(sys.argv[1]), float(sys.argv[2])))
"""


@pytest.mark.parametrize("point", [*CRASH_POINTS, "retention.before_delete:3", "publisher.before_timestamp"])
async def test_killed_at_any_step_of_a_pass_the_next_one_finishes_it(
    publishing: Publishing, point: str
) -> None:
    await publish(publishing, 1, 2, 3, 4)

    def run(days: float, **more: str) -> int:
        command = [sys.executable, "-c", SWEEP, str(publishing.base), str(days)]
        return subprocess.run(command, env={**os.environ, **more}, timeout=60, check=False).returncode

    first = 0.0 if point in ("retention.retired", "publisher.before_timestamp") else 1.1
    if first:
        assert run(0) == 0
    assert run(first, SYNCD_CRASH_AT=point) == -signal.SIGKILL
    for version in (3, 4):
        assert read_back(publishing.model_folder, version).files()
    assert run(2.2) == 0
    assert run(3.4) == 0
    index = await publishing.index()
    assert ([each.version for each in index.versions], index.retired) == ([3, 4], ())
    used = {pack for version in (3, 4) for pack in read_back(publishing.model_folder, version).table.packs}
    assert set(publishing.packs()) == {pack.removeprefix("sha256:") for pack in used}
