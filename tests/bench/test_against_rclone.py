"""1 GB of trained-like fp32 to and from the same S3 server as rclone: whole processes, start-up and imports included.

rclone as installed, but told not to ask for the bucket. Each side moves new bytes in every round, A B A B; figures are
medians. CPU is the client's own (user and system, children too); the server is the same process for both.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from syncd.config import StoreSection
from syncd.store.open import open_store
from syncd.trust.founding import found_fleet
from syncd.trust.keys import fleet_key_path, generate_key
from tests.bench.test_publish import trained_like
from tests.support.servers import SeaweedFS
from tests.support.signed_store import SignedStore

pytestmark = [pytest.mark.bench, pytest.mark.timeout(1800)]

GIGABYTES = float(os.environ.get("SYNCD_BENCH_GB", "1"))
ROUNDS = int(os.environ.get("SYNCD_BENCH_ROUNDS", "3"))
RCLONE = Path(sysconfig.get_path("scripts")) / "rclone"
MAX_CPU_RATIO = 1.2
MAX_TIME_RATIO = 1.0


@dataclass(frozen=True)
class Cost:
    """What a process took."""

    seconds: float
    cpu_s: float


def measured(words: list[str], environment: dict[str, str]) -> Cost:
    """Run a process to its end; wall time and the CPU of it and of its children."""
    began = time.monotonic()
    with subprocess.Popen(
        words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        talk = process.stderr.read() if process.stderr else b""
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, talk.decode()[-2000:]
    return Cost(time.monotonic() - began, used.ru_utime + used.ru_stime)


def rclone(seaweed: SeaweedFS, source: str, target: str) -> Cost:
    settings = {
        "TYPE": "s3",
        "PROVIDER": "SeaweedFS",
        "ENDPOINT": seaweed.endpoint,
        "ACCESS_KEY_ID": seaweed.access_key_id,
        "SECRET_ACCESS_KEY": seaweed.secret_access_key,
        "NO_CHECK_BUCKET": "true",
    }
    named = {f"RCLONE_CONFIG_SEAWEED_{key}": value for key, value in settings.items()}
    words = [str(RCLONE), "copyto", "--config", "/dev/null", source, target]
    return measured(words, {**os.environ, **named})


def syncd(script: str, seaweed: SeaweedFS, given: dict[str, object]) -> Cost:
    words = [sys.executable, str(Path(__file__).with_name(script)), json.dumps(given)]
    return measured(words, {**os.environ, **seaweed.environment})


@dataclass(frozen=True)
class Fleet:
    """A fleet in the bucket, and what a publisher of it is told."""

    section: StoreSection
    root: Path
    keys: Path
    model: str

    def given(self, **more: object) -> dict[str, object]:
        return {
            "store": {"url": self.section.url, "endpoint": self.section.endpoint},
            "root": str(self.root),
            "keys": str(self.keys),
            "model": self.model,
            **more,
        }


def make_fleet(base: Path, section: StoreSection, model: str) -> Fleet:
    async def make() -> bytes:
        store = open_store(section)
        fleet = await asyncio.to_thread(generate_key, fleet_key_path(base / "keys"))
        root = await found_fleet(store, fleet)
        await SignedStore(base, base / "keys", store, root).add_model(model)
        await store.aclose()
        return root

    base.mkdir()
    (base / "root.json").write_bytes(asyncio.run(make()))
    return Fleet(section, base / "root.json", base / "keys", model)


@pytest.fixture(scope="module")
def rounds(seaweed: SeaweedFS, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Cost]]:
    """Every round: rclone puts, syncd publishes, rclone gets, syncd pulls; the bytes compared."""
    base = tmp_path_factory.mktemp("against-rclone")
    for name, value in seaweed.environment.items():
        os.environ.setdefault(name, value)
    costs: dict[str, list[Cost]] = {"rclone put": [], "publish": [], "rclone get": [], "pull": []}
    for number in range(ROUNDS):
        for name, cost in one_round(seaweed, base / str(number), number):
            costs[name].append(cost)
        shutil.rmtree(base / str(number))
    return costs


def one_round(seaweed: SeaweedFS, base: Path, number: int) -> Iterator[tuple[str, Cost]]:
    """Up, then down; the other side first in every second round."""
    base.mkdir()
    checkpoint = trained_like(base / "model.safetensors", GIGABYTES, seed=number)
    remote = f"seaweed:{seaweed.bucket}/rclone/{number}.safetensors"
    fleet = make_fleet(base / "fleet", seaweed.section(f"fleet-{number}"), "m")
    given = fleet.given(path=str(checkpoint), state=str(base / "state"))
    back, pulled = base / "back.safetensors", base / "pulled"
    yield from _in_turn(
        number,
        ("rclone put", lambda: rclone(seaweed, str(checkpoint), remote)),
        ("publish", lambda: syncd("publish_once.py", seaweed, given)),
    )
    yield from _in_turn(
        number,
        ("rclone get", lambda: rclone(seaweed, remote, str(back))),
        ("pull", lambda: syncd("pull_once.py", seaweed, fleet.given(to=str(pulled)))),
    )
    assert (pulled / "model.safetensors").stat().st_size > 0.99 * checkpoint.stat().st_size


def _in_turn(number: int, *sides: tuple[str, Callable[[], Cost]]) -> Iterator[tuple[str, Cost]]:
    """Run both sides, the other one first in every second round."""
    for name, side in sides if number % 2 == 0 else reversed(sides):
        yield name, side()


def compare(costs: dict[str, list[Cost]], peer: str, ours: str) -> None:
    middle = {
        name: Cost(
            statistics.median(c.seconds for c in costs[name]), statistics.median(c.cpu_s for c in costs[name])
        )
        for name in (peer, ours)
    }
    version = subprocess.run(
        [RCLONE, "version"], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    cpu = middle[ours].cpu_s / middle[peer].cpu_s
    wall = middle[ours].seconds / middle[peer].seconds
    print(
        f"\n{ours} / {peer}, {GIGABYTES:g} GB, {ROUNDS} rounds: CPU {cpu:.2f} "
        f"({middle[ours].cpu_s:.1f} / {middle[peer].cpu_s:.1f} s), time {wall:.2f} "
        f"({middle[ours].seconds:.1f} / {middle[peer].seconds:.1f} s); {platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, {version.splitlines()[0]}; all {costs[peer]} {costs[ours]}"
    )
    assert cpu <= MAX_CPU_RATIO
    assert wall <= MAX_TIME_RATIO


def test_publishing_costs_no_more_than_rclone(rounds: dict[str, list[Cost]]) -> None:
    compare(rounds, "rclone put", "publish")


def test_pulling_costs_no_more_than_rclone(rounds: dict[str, list[Cost]]) -> None:
    compare(rounds, "rclone get", "pull")
