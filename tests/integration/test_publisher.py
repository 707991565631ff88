"""A publisher on a real training folder: what appears is published once, what cannot be is said, nothing is lost."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from syncd.config import StoreSection
from syncd.state.db import Database
from syncd.store.open import open_store
from tests.support.publishing import (
    Publishing,
    idle_at,
    make_publisher,
    make_publishing,
    network,
    read_back,
    running,
    save_checkpoint,
    stands_still_at,
    until,
)
from tests.support.signed_store import disk

WITHIN_S = 60.0


@pytest.fixture
async def publishing(tmp_path: Path) -> Publishing:
    return await make_publishing(tmp_path)


async def test_what_training_writes_is_published_in_its_order_and_a_restart_publishes_nothing_twice(
    publishing: Publishing,
) -> None:
    publisher = make_publisher(publishing)
    async with running(publisher):
        await until(lambda: publisher.snapshot()["state"] == "idle", publisher)
        for epoch in (1, 2):
            save_checkpoint(publishing.runs / f"epoch-{epoch}.pt", epoch=epoch)
            await until(idle_at(publisher, epoch), publisher)
    for version in (1, 2):
        path = publishing.runs / f"epoch-{version}.pt"
        assert read_back(publishing.model_folder, version).files() == {path.name: path.read_bytes()}
    before = disk(publishing.model_folder)
    again = make_publisher(publishing)
    async with running(again):
        await until(idle_at(again, 2), again)
    assert disk(publishing.model_folder) == before


async def test_links_copies_and_renames_of_a_checkpoint_are_one_version(publishing: Publishing) -> None:
    publisher = make_publisher(publishing)
    async with running(publisher):
        await until(lambda: publisher.snapshot()["state"] == "idle", publisher)
        path = save_checkpoint(publishing.runs / "epoch-1.pt")
        await until(idle_at(publisher, 1), publisher)
        os.link(path, publishing.runs / "last.pt")
        (publishing.runs / "link.pt").symlink_to("epoch-1.pt")
        shutil.copy(path, publishing.runs / "best.pt")
        path.rename(path.with_name("renamed.pt"))
        await until(lambda: publisher.snapshot()["seen"] >= 3 and idle_at(publisher, 1)(), publisher)
        save_checkpoint(publishing.runs / "epoch-2.pt", epoch=2)
        await until(idle_at(publisher, 2), publisher)
    assert [each.version for each in (await publishing.index()).versions] == [1, 2]


async def test_a_file_in_the_making_is_published_when_it_is_whole_and_never_before(
    publishing: Publishing,
) -> None:
    whole = save_checkpoint(publishing.base / "whole.pt").read_bytes()
    publisher = make_publisher(publishing)
    async with running(publisher):
        await until(lambda: publisher.snapshot()["state"] == "idle", publisher)
        path = publishing.runs / "epoch-1.pt"
        path.write_bytes(whole[: len(whole) // 2])
        await until(lambda: bool(publisher.snapshot()["ignored"]), publisher)
        assert "not yet: checkpoint-incomplete" in publisher.snapshot()["ignored"][0]["why"]
        assert publisher.snapshot()["pending"] == 1
        with path.open("ab") as file:
            file.write(whole[len(whole) // 2 :])
        await until(idle_at(publisher, 1), publisher)
        assert publisher.snapshot()["ignored"] == []
    assert read_back(publishing.model_folder, 1).files() == {"epoch-1.pt": whole}


async def test_bad_checkpoints_are_said_once_and_the_rest_goes_on(publishing: Publishing) -> None:
    (publishing.runs / "noise.pt").write_bytes(os.urandom(5000))
    gan = {"generator": network(1).state_dict(), "critic": network(2).state_dict()}
    torch.save(gan, publishing.runs / "gan.pt")
    save_checkpoint(publishing.runs / "good.pt")
    publisher = make_publisher(publishing, backfill="all")
    async with running(publisher):
        await until(idle_at(publisher, 1), publisher)
        why = {Path(each["path"]).name: each["why"] for each in publisher.snapshot()["ignored"]}
        assert why.keys() == {"noise.pt", "gan.pt"}
        assert why["gan.pt"].startswith("model-ambiguous")
        told = len(publishing.db.rows("SELECT id FROM events WHERE kind='ignored'"))
        save_checkpoint(publishing.runs / "noise.pt", epoch=7)
        await until(idle_at(publisher, 2), publisher)
        assert {Path(each["path"]).name for each in publisher.snapshot()["ignored"]} == {"gan.pt"}
    assert told == 2
    assert len(publishing.db.rows("SELECT id FROM events WHERE kind='ignored'")) == 2


@pytest.mark.parametrize(
    ("backfill", "expected"), [("newest", ["c.pt"]), ("all", ["a.pt", "b.pt", "c.pt"]), ("none", [])]
)
async def test_backfill_decides_about_what_was_there_before_and_never_again(
    publishing: Publishing, backfill: str, expected: list[str]
) -> None:
    for age, name in ((30, "a.pt"), (20, "b.pt"), (10, "c.pt")):
        path = save_checkpoint(publishing.runs / name, epoch=age)
        os.utime(path, (time.time() - age, time.time() - age))
    broken = publishing.runs / "d.pt"
    broken.write_bytes((publishing.runs / "c.pt").read_bytes()[:-50])
    for _start in range(2):
        publisher = make_publisher(publishing, backfill=backfill)
        async with running(publisher):
            await until(stands_still_at(publisher, len(expected) or None), publisher)
    found = [publishing.head(each.version).files[0].path for each in (await publishing.index()).versions]
    assert found == expected


async def test_an_unreachable_store_loses_nothing_and_is_said(
    publishing: Publishing, monkeypatch: Any
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    save_checkpoint(publishing.runs / "1.pt")
    away = publishing.base / "away"
    publishing.signed.folder.rename(away)
    publisher = make_publisher(publishing)
    async with running(publisher) as wake:
        await until(lambda: publisher.snapshot()["last_error"] is not None, publisher)
        assert publisher.snapshot()["state"] == "backing-off"
        away.rename(publishing.signed.folder)
        wake.set()
        await until(idle_at(publisher, 1), publisher)
        assert publisher.snapshot()["last_error"] is None
    absent = open_store(
        StoreSection(url="s3://nothing/there", endpoint="http://127.0.0.1:9", region="us-east-1")
    )
    other = make_publisher(publishing, absent)
    async with running(other):
        await until(lambda: other.snapshot()["last_error"] is not None, other)
        assert other.snapshot()["last_error"]["code"] == "store-unreachable"
    await absent.aclose()


async def test_a_flush_publishes_what_has_not_settled_yet(publishing: Publishing) -> None:
    publisher = make_publisher(publishing, settle="1h")
    async with running(publisher):
        await until(lambda: publisher.snapshot()["state"] == "idle", publisher)
        save_checkpoint(publishing.runs / "1.pt")
        await until(lambda: publisher.snapshot()["pending"] == 1, publisher)
        assert publisher.snapshot()["last_version"] is None
        await asyncio.wait_for(publisher.flush(), WITHIN_S)
        assert publisher.snapshot()["last_version"] == 1
    await asyncio.wait_for(publisher.flush(), 1)


async def test_the_folder_may_be_missing_and_come_again(publishing: Publishing) -> None:
    section = {"watch": str(publishing.base / "later")}
    publisher = make_publisher(publishing, **section)
    async with running(publisher):
        await until(lambda: publisher.snapshot()["state"] == "idle", publisher)
        for epoch in (1, 2):
            (publishing.base / "later").mkdir()
            save_checkpoint(publishing.base / "later" / "1.pt", epoch=epoch)
            await until(idle_at(publisher, epoch), publisher)
            shutil.rmtree(publishing.base / "later")


async def test_a_publisher_that_is_cancelled_while_it_uploads_leaves_a_readable_store_and_goes_on_later(
    publishing: Publishing,
) -> None:
    torch.save({f"w{n}": torch.randn(4_000_000) for n in range(4)}, publishing.runs / "large.pt")
    publisher = make_publisher(publishing)
    async with running(publisher):
        await until(lambda: (publisher.snapshot()["progress"] or {}).get("done_bytes", 0) > 0, publisher)
    assert (await publishing.index()).versions == ()
    uploaded = {name: (publishing.model_folder / "packs" / name).stat().st_ino for name in publishing.packs()}
    assert uploaded
    again = make_publisher(publishing)
    async with running(again):
        await until(
            lambda: again.snapshot()["last_version"] is not None and not again.snapshot()["pending"], again
        )
    version = (await publishing.index()).versions[-1].version
    found = read_back(publishing.model_folder, version)
    assert found.files() == {"large.pt": (publishing.runs / "large.pt").read_bytes()}
    assert set(publishing.packs()) == {pack.removeprefix("sha256:") for pack in found.table.packs}
    assert (
        uploaded.items()
        <= {
            name: (publishing.model_folder / "packs" / name).stat().st_ino for name in publishing.packs()
        }.items()
    )


async def test_memory_of_what_is_published_survives_in_the_state_file_alone(publishing: Publishing) -> None:
    save_checkpoint(publishing.runs / "1.pt")
    await publishing.publish(publishing.runs / "1.pt")
    with Database(publishing.base / "fresh.db") as fresh:
        newcomer = Publishing(publishing.signed, publishing.base, fresh)
        publisher = make_publisher(newcomer)
        async with running(publisher):
            await until(idle_at(publisher, 1), publisher)
    assert [each.version for each in (await publishing.index()).versions] == [1]
