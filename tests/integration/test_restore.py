"""`restore`: every file of a version back, byte for byte; nothing that is there is written over."""

import hashlib
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from syncd.edge.restore import CRASH_POINT, restore
from syncd.errors import Failed, SegmentCorrupt, UnknownModel, UnknownVersion
from tests.support.published import Content, published_store, tensors
from tests.support.signed_store import disk, open_folder


@pytest.fixture
async def published(tmp_path):
    store = await published_store(tmp_path / "pub")
    yield store
    await store.signed.store.aclose()


async def restore_from(published, to, **keys):
    store = open_folder(published.url)
    try:
        return await restore(store, published.signed.root, keys.pop("model", "m"), to=to, **keys)
    finally:
        await store.aclose()


def training(seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(2_000_000) + b"rng state" * 1000


def full(seed: int) -> Content:
    return Content(
        tensors(seed, megabytes=1), training(seed), {"labels.txt": b"x"}, name=f"runs/step-{seed}.bin"
    )


async def test_every_file_is_back_byte_for_byte_with_its_sha256(published, tmp_path):
    await published.publish(full(1))
    result = await restore_from(published, tmp_path / "runs")
    assert result.version == 1
    for name, data in full(1).files.items():
        assert (tmp_path / "runs" / name).read_bytes() == data
        entry = {"path": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        assert entry in result.files
    assert (tmp_path / "runs/runs/step-1.bin").stat().st_mode & 0o200
    assert not (tmp_path / "runs/.syncd/incoming").exists()


async def test_without_a_number_it_is_the_newest_version_with_training_state(published, tmp_path):
    await published.publish(full(1))
    await published.publish(full(2))
    await published.publish(Content(tensors(3, megabytes=1), b"", name="weights.bin"))
    assert (await restore_from(published, tmp_path / "a")).version == 2
    assert (await restore_from(published, tmp_path / "b", version=1)).version == 1
    assert (await restore_from(published, tmp_path / "c", version=3)).version == 3


async def test_on_a_first_run_if_any_does_nothing_and_without_it_the_error_says_so(published, tmp_path):
    assert (await restore_from(published, tmp_path / "runs", if_any=True)).version is None
    assert (await restore_from(published, tmp_path / "runs", model="other", if_any=True)).version is None
    assert not (tmp_path / "runs").exists()
    with pytest.raises(UnknownVersion, match="no version with training state"):
        await restore_from(published, tmp_path / "runs")
    with pytest.raises(UnknownModel):
        await restore_from(published, tmp_path / "runs", model="other")
    with pytest.raises(UnknownVersion, match="no version 3"):
        await restore_from(published, tmp_path / "runs", version=3, if_any=True)


async def test_other_files_of_the_same_name_are_named_and_left_alone(published, tmp_path):
    await published.publish(full(1))
    runs = tmp_path / "runs"
    (runs / "runs").mkdir(parents=True)
    (runs / "runs/step-1.bin").write_bytes(b"my own")
    (runs / "labels.txt").write_bytes(b"x")
    before = {name: each for name, each in disk(runs).items() if ".syncd" not in name}
    with pytest.raises(Failed, match=r"other files under these names: runs/step-1\.bin\n"):
        await restore_from(published, runs)
    assert {name: each for name, each in disk(runs).items() if ".syncd" not in name} == before


async def test_files_that_are_there_already_are_not_fetched_again(published, tmp_path):
    await published.publish(full(1))
    await restore_from(published, tmp_path / "runs")
    inode = (tmp_path / "runs/runs/step-1.bin").stat().st_ino
    again = await restore_from(published, tmp_path / "runs")
    assert again.wire_bytes < 10_000
    assert (tmp_path / "runs/runs/step-1.bin").stat().st_ino == inode


async def test_a_dry_run_says_what_would_come_and_changes_nothing(published, tmp_path):
    await published.publish(full(1))
    result = await restore_from(published, tmp_path / "runs", dry_run=True)
    assert [each["path"] for each in result.files] == list(full(1).files)
    assert not (tmp_path / "runs").exists()


async def test_flipped_bits_are_refused_and_no_file_appears(published, tmp_path):
    await published.publish(full(1))
    [pack] = published.packs()
    good = pack.read_bytes()
    pack.chmod(0o644)
    pack.write_bytes(good[:90_000] + bytes([good[90_000] ^ 4]) + good[90_001:])
    with pytest.raises(SegmentCorrupt):
        await restore_from(published, tmp_path / "runs")
    assert [each.name for each in (tmp_path / "runs").iterdir()] == [".syncd"]
    pack.write_bytes(good)
    await restore_from(published, tmp_path / "runs")


RESTORE = """
import asyncio, sys
from pathlib import Path
from syncd.config import StoreSection
from syncd.edge.restore import restore
from syncd.store.open import open_store
async def main():
    store = open_store(StoreSection(url=sys.argv[1]))
    await restore(store, Path(sys.argv[2]).read_bytes(), "m", to=Path(sys.argv[3]))
asyncio.run(main())
"""


def run(command, environment):
    return subprocess.run(command, env=environment, timeout=60, check=False).returncode


@pytest.mark.parametrize("point", ["edge.fetch.segment:2", CRASH_POINT])
async def test_killed_half_way_no_file_is_half_there_and_the_next_restore_ends_it(published, tmp_path, point):
    await published.publish(full(1))
    environment = {**os.environ, "SYNCD_CRASH_AT": point}
    command = [sys.executable, "-c", RESTORE, published.url, published.root_file, tmp_path / "runs"]
    assert run(command, environment) == -signal.SIGKILL
    for name, data in full(1).files.items():
        path = tmp_path / "runs" / name
        assert not path.exists() or path.read_bytes() == data
    result = await restore_from(published, tmp_path / "runs")
    for name, data in full(1).files.items():
        assert (tmp_path / "runs" / name).read_bytes() == data
    assert result.wire_bytes < len(full(1).file)
