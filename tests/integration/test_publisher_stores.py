"""A publisher and a store that cannot or should not be written: said as last_error, nothing given up, nothing lost."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest
import torch

from syncd.config import StoreSection
from syncd.store.open import open_store
from tests.support.publishing import (
    MODEL,
    make_publisher,
    make_publishing,
    read_back,
    running,
    save_checkpoint,
    until,
)
from tests.support.servers import RcloneS3, SeaweedFS


async def says(tmp_path: Path, section: StoreSection, code: str) -> None:
    """A publisher on this store says `code`, keeps the checkpoint pending, and goes on trying."""
    publishing = await make_publishing(tmp_path)
    save_checkpoint(publishing.runs / "1.pt")
    store = open_store(section)
    publisher = make_publisher(publishing, store)
    async with running(publisher):
        await until(lambda: publisher.snapshot()["last_error"] is not None, publisher)
        told = publisher.snapshot()
        assert (told["last_error"]["code"], told["state"]) == (code, "backing-off")
        assert told["last_error"]["do"] or told["last_error"]["why"]
    await store.aclose()


async def test_credentials_that_may_only_read_are_said(
    tmp_path: Path, seaweed: SeaweedFS, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDREADER")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "reader-secret")
    await says(tmp_path, seaweed.section("denied"), "store-denied")


async def test_a_store_that_ignores_conditions_is_never_entrusted_with_anything(
    tmp_path: Path, rclone_s3: RcloneS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in rclone_s3.environment.items():
        monkeypatch.setenv(name, value)
    await says(tmp_path, rclone_s3.section("dishonest"), "store-dishonest")


async def test_a_store_that_can_only_be_read_is_said(tmp_path: Path) -> None:
    await says(tmp_path, StoreSection(url="http://127.0.0.1:9/fleet"), "store-read-only")


async def test_a_publish_to_s3_comes_back_whole(tmp_path: Path, s3: SeaweedFS) -> None:
    from tests.support.signed_store import SignedStore

    publishing = await make_publishing(tmp_path)
    store = open_store(s3.section("whole"))
    from syncd.trust.founding import found_fleet
    from syncd.trust.keys import fleet_key_path, generate_key

    keys = tmp_path / "s3-keys"
    root = await found_fleet(store, generate_key(fleet_key_path(keys)))
    publishing.signed = SignedStore(tmp_path / "none", keys, store, root)
    await publishing.signed.add_model(MODEL)
    path = save_checkpoint(publishing.runs / "1.pt")
    result = await publishing.publish(path)
    assert result.new
    async for info in store.list(f"models/{MODEL}"):
        target = tmp_path / "copy" / info.key
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((await store.get(info.key, limit=2**25)).data)
    assert read_back(tmp_path / "copy" / "models" / MODEL, 1).files() == {"1.pt": path.read_bytes()}
    assert (await publishing.publish(path)).new is False
    await store.aclose()


@pytest.mark.root
async def test_a_full_store_is_said_and_the_checkpoint_goes_up_when_there_is_room(
    tmp_path: Path, small_disk: Path
) -> None:
    publishing = await make_publishing(tmp_path)
    shutil.move(publishing.signed.folder, small_disk / "store")
    publishing.signed.folder.symlink_to(small_disk / "store")
    torch.save({"w": torch.randn(600_000)}, publishing.runs / "1.pt")
    filler = small_disk / "filler"
    with filler.open("wb") as file:
        room = os.statvfs(small_disk)
        file.write(os.urandom(max(0, room.f_bavail * room.f_frsize - (1 << 20))))
    publisher = make_publisher(publishing)
    async with running(publisher) as wake:
        await until(lambda: publisher.snapshot()["last_error"] is not None, publisher)
        assert publisher.snapshot()["last_error"]["code"] == "store-full"
        assert publisher.snapshot()["pending"] == 1
        assert (await publishing.index()).versions == ()
        filler.unlink()
        wake.set()
        await until(lambda: publisher.snapshot()["last_version"] is not None, publisher)
    versions = (await publishing.index()).versions
    assert read_back(publishing.model_folder, versions[-1].version).files() == {
        "1.pt": (publishing.runs / "1.pt").read_bytes()
    }


async def test_a_flush_ends_while_the_store_is_away_and_nothing_is_entrusted_to_it(tmp_path: Path) -> None:
    publishing = await make_publishing(tmp_path)
    save_checkpoint(publishing.runs / "1.pt")
    publishing.signed.folder.rename(tmp_path / "away")
    publisher = make_publisher(publishing)
    async with running(publisher):
        await until(lambda: publisher.snapshot()["last_error"] is not None, publisher)
        await asyncio.wait_for(publisher.flush(), 30)
        assert publisher.snapshot()["state"] == "backing-off"
    assert not publishing.signed.folder.exists()
