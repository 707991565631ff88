"""A publisher killed, or cut off like by a power failure, at each of its named steps, and started again.

Each time: the store is readable before the restart and after it, the checkpoint is published once, every byte of it
comes back, and what was uploaded before is not uploaded again.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from syncd.config import StoreSection
from syncd.publisher.commit import open_model
from syncd.publisher.version import CRASH_POINTS
from syncd.store.open import open_store
from tests.support.disks import after_power_cut, mounted_image
from tests.support.publishing import MODEL, Publishing, make_publishing, read_back, save_checkpoint

WITHIN_S = 120.0


def start(base: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "tests.support.publisher_driver", str(base)]
    return subprocess.Popen(words, env={**os.environ, **environment}, stderr=subprocess.PIPE)


def run(base: Path, **environment: str) -> int:
    """Run a publisher to its end; → exit status, negative for a signal."""
    process = start(base, environment)
    _, talk = process.communicate(timeout=WITHIN_S)
    assert process.returncode in (0, -signal.SIGKILL), talk.decode()
    return process.returncode


def committed(base: Path, store: Path) -> list[int]:
    """The versions that a reader with nothing but the root finds, each read back in full."""

    async def look() -> list[int]:
        opened = open_store(StoreSection(url=str(store)))
        folder = base / f"reader-{len(list(base.glob('reader-*')))}"
        repository = await open_model(opened, MODEL, (base / "root.json").read_bytes(), None, folder)
        versions = [each.version for each in repository.index.versions]
        released = repository.channels["latest"]
        assert (released.version if released else None) == max(versions, default=None)
        return versions

    versions = asyncio.run(look())
    for version in versions:
        found = read_back(store / "models" / MODEL, version)
        assert found.files() == {"epoch-1.pt": (base / "runs" / "epoch-1.pt").read_bytes()}
    return versions


def packs(store: Path) -> dict[str, int]:
    """Packs by name, with their inodes: one that is put again would have another."""
    folder = store / "models" / MODEL / "packs"
    return {path.name: path.stat().st_ino for path in folder.glob("*")} if folder.is_dir() else {}


@pytest.fixture
def publishing(tmp_path: Path) -> Publishing:
    made = asyncio.run(make_publishing(tmp_path))
    made.db.close()
    (tmp_path / "root.json").write_bytes(made.signed.root)
    save_checkpoint(made.runs / "epoch-1.pt")
    return made


def test_every_named_step_is_on_the_way_of_a_first_publish(publishing: Publishing) -> None:
    log = publishing.base / "log"
    assert run(publishing.base, SYNCD_CRASH_LOG=str(log)) == 0
    passed = Counter(log.read_text().split())
    assert set(CRASH_POINTS) <= passed.keys(), "a step that nothing comes by is tested by nothing"
    assert committed(publishing.base, publishing.signed.folder) == [1]


@pytest.mark.parametrize("point", CRASH_POINTS)
def test_killed_at_a_step_it_leaves_a_readable_store_and_finishes_after_a_restart(
    publishing: Publishing, point: str
) -> None:
    base, store = publishing.base, publishing.signed.folder
    assert run(base, SYNCD_CRASH_AT=point) == -signal.SIGKILL
    before, uploaded = committed(base, store), packs(store)
    assert run(base) == 0
    after = committed(base, store)
    assert len(after) == 1
    assert before in ([], after)
    assert uploaded.items() <= packs(store).items()
    if before:
        assert packs(store) == uploaded
    referred = read_back(store / "models" / MODEL, after[0]).table.packs
    assert set(packs(store)) == {pack.removeprefix("sha256:") for pack in referred}
    if point in CRASH_POINTS[-3:]:
        assert run(base) == 0
        assert committed(base, store) == after


def test_killed_at_every_pack_of_a_larger_checkpoint_nothing_goes_up_twice(publishing: Publishing) -> None:
    import torch

    torch.manual_seed(3)
    path = publishing.runs / "epoch-1.pt"
    torch.save({f"w{n}": torch.randn(4_200_000) for n in range(4)}, path)
    base, store, uploaded = publishing.base, publishing.signed.folder, {}
    starts = 0
    while run(base, SYNCD_CRASH_AT="publisher.after_pack:1") != 0:
        assert uploaded.items() <= packs(store).items()
        uploaded = packs(store)
        starts += 1
        assert starts < 20
    assert starts >= 3
    assert uploaded.items() <= packs(store).items()
    assert len(committed(base, store)) == 1


@pytest.mark.root
@pytest.mark.parametrize(
    ("cut", "point"),
    [
        *(("store", point) for point in CRASH_POINTS),
        *(("state", point) for point in ("publisher.after_pack", *CRASH_POINTS[-3:])),
    ],
)
def test_cut_off_like_a_power_failure_at_a_step_it_finishes_after_the_restart(
    publishing: Publishing, cut: str, point: str
) -> None:
    """The store's folder or the publisher's state goes back to what had reached the disk; the other one goes on."""
    base = publishing.base
    moved = publishing.signed.folder if cut == "store" else base / "state"
    with mounted_image(base / "disk", 96 << 20) as disk:
        shutil.copytree(moved, disk / cut)
        subprocess.run(["sync", "-f", str(disk)], check=True, timeout=60)
        stopping = {**place(cut, disk), "SYNCD_CRASH_AT": point, "SYNCD_CRASH_SIGNAL": "STOP"}
        with start(base, stopping) as process:
            _, status = os.waitpid(process.pid, os.WUNTRACED)
            stopped = os.WIFSTOPPED(status)
            with after_power_cut(base / "disk") as left:
                process.kill()
                assert stopped, process.stderr and process.stderr.read().decode()
                store = left / cut if cut == "store" else publishing.signed.folder
                before = committed(base, store)
                assert run(base, **place(cut, left)) == 0
                after = committed(base, store)
    assert len(after) == 1
    assert before in ([], after)


def place(cut: str, disk: Path) -> dict[str, str]:
    """The driver's environment with the store or the state on `disk`."""
    return {f"PUBLISHER_{cut.upper()}": str(disk / cut)}
