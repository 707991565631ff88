"""Two machines that release one model at the same time, one of them killed now and then, and retention beside them.

`pytest -m soak` takes 100 releases on each machine, any other run 4.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from syncd.artifact.index import Index
from syncd.cli.setup import run_init
from syncd.config import StoreSection
from syncd.edge.restore import restore
from syncd.errors import LostRace, ObjectMissing
from syncd.publisher.commit import ModelRepository, open_model
from syncd.publisher.retention import CRASH_POINTS as RETENTION_POINTS
from syncd.publisher.retention import Needs, sweep
from syncd.publisher.version import CRASH_POINTS
from syncd.store.base import Store
from syncd.store.open import open_store
from syncd.trust import names
from tests.support.many_publishers import KEEP, lines

if TYPE_CHECKING:
    from tests.support.servers import SeaweedFS

DAY_S = 86400.0
KILL_EVERY = 4  # releases of the machine that is killed, about
MOST_S = 2400.0


@dataclass
class Race:
    """Two publishers' folders and the store between them."""

    base: Path
    section: StoreSection
    releases: int
    environment: dict[str, str]

    def start(self, *words: str, **more: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.support.many_publishers", str(self.base), *words]
        with (self.base / "talk").open("ab") as talk:
            return subprocess.Popen(command, env={**os.environ, **self.environment, **more}, stderr=talk)

    @property
    def talk(self) -> str:
        """What all of them said on stderr."""
        return (self.base / "talk").read_text()[-4000:]

    def released(self) -> dict[str, int]:
        """File → version, of everything that a publisher was told is released."""
        found = [*lines(self.base / "a.log"), *lines(self.base / "b.log")]
        return {file: int(version) for file, version in found}


def make_checkpoints(base: Path, releases: int) -> None:
    """Checkpoints that share what training leaves alone, across machines too, so that packs are referred to again."""
    bodies = [
        torch.randn(96, 1024, generator=torch.Generator().manual_seed(n)).repeat(4, 1) for n in range(3)
    ]
    for machine, number in itertools.product("ab", range(releases)):
        torch.manual_seed(1000 * number + ord(machine))
        document = {
            "model": {"body": bodies[number % 3], "head": torch.randn(300)},
            "optimizer": {"moments": bodies[(number + 1) % 3].clone(), "own": torch.randn(40)},
            "epoch": number,
        }
        torch.save(document, base / f"{machine}-{number:03}.pt")


@pytest.fixture(params=["folder", "seaweedfs"])
def race(request: pytest.FixtureRequest, tmp_path: Path) -> Race:
    environment: dict[str, str] = {}
    section = StoreSection(url=f"file://{tmp_path}/store")
    if request.param == "seaweedfs":
        server: SeaweedFS = request.getfixturevalue("s3")
        section, environment = server.section(f"race-{time.time_ns()}"), dict(server.environment)
    made = run_init(section, models=["m"], keys=tmp_path / "keys", config=tmp_path / "config.toml")
    assert made.root == tmp_path / "root.json"
    (tmp_path / "store.json").write_text(section.model_dump_json(exclude_none=True))
    (tmp_path / "ahead").write_text("0")
    releases = 100 if "soak" in (request.config.option.markexpr or "") else 4
    make_checkpoints(tmp_path, releases)
    return Race(tmp_path, section, releases, environment)


def killed_now_and_then(race: Race, chance: random.Random) -> Iterator[None]:
    """Machine b and the collector, each killed at a step that chance picks, and started again; one look a turn."""
    ends = {"b": ("publish", "b"), "collector": ("collect",)}
    points = {"b": CRASH_POINTS, "collector": RETENTION_POINTS}
    running: dict[str, subprocess.Popen[bytes]] = {}
    kills = dict.fromkeys(ends, 0)
    while True:
        for name, words in ends.items():
            process = running.get(name)
            if process is not None and process.poll() is None:
                continue
            if process is not None:
                assert process.returncode in (0, -signal.SIGKILL), race.talk
                if process.returncode == 0:
                    continue
                kills[name] += 1
            at = f"{chance.choice(points[name])}:{chance.randint(1, KILL_EVERY)}"
            running[name] = race.start(
                *words, **({} if kills[name] >= race.releases else {"SYNCD_CRASH_AT": at})
            )
        (race.base / "kills.json").write_text(json.dumps(kills))
        yield
        if all(each.poll() == 0 for each in running.values()):
            return


async def run_race(race: Race) -> None:
    """Until both machines have released everything; the collector's clock runs ahead of them, six days in all."""
    chance = random.Random(race.releases)
    steady = race.start("publish", "a")
    end = time.monotonic() + MOST_S
    for _ in killed_now_and_then(race, chance):
        done = len(race.released())
        (race.base / "ahead.new").write_text(str(6 * DAY_S * done / (2 * race.releases)))
        (race.base / "ahead.new").replace(race.base / "ahead")
        if done == 2 * race.releases and steady.poll() is not None:
            (race.base / "stop").touch()
        assert time.monotonic() < end, race.released()
        assert steady.poll() in (None, 0), race.talk
        await asyncio.sleep(0.1)
    assert steady.wait(10) == 0


async def everything_holds(
    race: Race, repository: ModelRepository, store: Store, retired: set[int], where: Path
) -> None:
    """Nothing lost, no number used twice, every kept version restorable, byte for byte."""
    await repository.load()
    released = race.released()
    kept = [each.version for each in repository.index.versions]
    assert len(released) == len(set(released.values())) == 2 * race.releases, "a number was given twice"
    assert set(released.values()) == set(kept) | retired, "a release is neither kept nor retired"
    latest = repository.channels["latest"]
    assert latest is not None
    assert latest.version == max(released.values())
    root = (race.base / "root.json").read_bytes()
    files = {version: file for file, version in released.items()}
    for version in kept:
        to = where / str(version)
        await restore(store, root, "m", version=version, to=to)
        for path in (each for each in to.iterdir() if each.is_file()):
            original = (race.base / files[version]).read_bytes()
            assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(original).digest(), version
            break
        else:
            raise AssertionError(f"nothing was restored of {version}")


async def history(store: Store) -> tuple[dict[int, set[str]], set[int]]:
    """Version → the heads that any index ever named for it; and the versions that any index says are retired."""
    found: dict[int, set[str]] = {}
    retired: set[int] = set()
    async for each in store.list("models/m/index"):
        index = Index.parse((await store.get(each.key, limit=2**26)).data)
        for entry in (*index.versions, *index.retired):
            found.setdefault(entry.version, set()).add(entry.head.digest)
        retired |= {entry.version for entry in index.retired}
    return found, retired


async def objects(store: Store, folder: str) -> set[str]:
    return {each.key.removeprefix("models/m/") async for each in store.list(f"models/m/{folder}")}


@pytest.mark.soak
@pytest.mark.timeout(2600)
async def test_two_machines_and_a_collector_lose_nothing_though_two_of_them_are_killed(race: Race) -> None:
    await run_race(race)
    store = open_store(race.section)
    root = (race.base / "root.json").read_bytes()
    repository = await open_model(store, "m", root, race.base / "keys", race.base / "looker")
    named, retired = await history(store)
    assert all(len(heads) == 1 for heads in named.values()), "two contents under one number"
    await everything_holds(race, repository, store, retired, race.base / "restored")
    gone = retired - {each.version for each in repository.index.versions}
    assert len(gone) > race.releases // 2, "retention did run beside them"
    kills = json.loads((race.base / "kills.json").read_text())
    assert kills["b"] >= 2, kills
    retired |= {each.version for each in repository.index.versions}  # the last ones may be too many
    for _ in range(3):  # long afterwards: what is left is what kept versions need
        try:
            await sweep(repository, KEEP, clock=lambda: time.time() + 30 * DAY_S)
        except LostRace:
            continue
    await everything_holds(race, repository, store, retired, race.base / "again")
    used: set[str] = set()
    for entry in repository.index.versions:
        used |= await Needs(repository).of(entry.version, entry.head)
    for folder in ("packs", "layouts", "tables"):
        assert await objects(store, folder) == {each for each in used if each.startswith(f"{folder}/")}
    heads = {each for each in await objects(store, "versions") if each.endswith("head.json")}
    assert heads == {names.head(each.version) for each in repository.index.versions}
    assert repository.index.retired == ()
    with pytest.raises(ObjectMissing):
        await store.head(f"models/m/{names.head(min(gone))}")
    print(f"{race.section.url}: {race.releases} releases each, kills {kills}, {len(gone)} retired")
    await store.aclose()
