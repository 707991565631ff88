"""The same trust on a real S3 server and behind a real nginx, and with a store that does not answer."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from syncd.artifact.index import Index
from syncd.cli.setup import run_init, run_join
from syncd.config import StoreSection
from syncd.errors import LostRace, StoreDishonest, StoreReadOnly, StoreUnreachable
from syncd.store.folder import FolderStore
from syncd.store.open import open_store
from tests.support.signed_store import SignedStore, WatchedStore, disk, make_head

if TYPE_CHECKING:
    from tests.support.servers import Nginx, RcloneS3, SeaweedFS


def test_on_s3_two_publishers_race_and_an_idle_poll_has_no_body(s3: SeaweedFS, tmp_path: Path) -> None:
    section = s3.section("fleet-commit")
    made = run_init(section, models=["m"], keys=tmp_path / "keys")

    async def story() -> None:
        signed = SignedStore(tmp_path / "x", tmp_path / "keys", open_store(section), made.root.read_bytes())
        loser = await signed.repository("m")
        version = await loser.claim()
        await signed.release("m")
        with pytest.raises(LostRace):
            await loser.commit(version=version, head=make_head("m", version), channel="latest")
        await loser.commit(version=version, head=make_head("m", version), channel="latest")
        watched = WatchedStore(signed.store)
        trust = signed.trust("m", tmp_path / "node", store=watched)
        facts = await trust.refresh("latest")
        assert facts is not None
        assert facts.version == 2
        assert [each.version for each in Index.parse(await trust.index()).versions] == [1, 2]
        watched.asked.clear()
        watched.bodies.clear()
        assert await trust.refresh("latest") is None
        assert (watched.asked, watched.bodies) == (["models/m/metadata/timestamp.json"], [])
        await signed.store.aclose()

    asyncio.run(story())
    run_join(section, fingerprint=made.fingerprint, models=["m"], config=tmp_path / "edge/config.toml")
    again = run_init(section, models=["m", "n"], keys=tmp_path / "keys", channels=["canary"])
    assert [each.added_channels for each in again.models] == [("canary",), ("latest", "stable", "canary")]


@pytest.mark.debian("nginx")
async def test_behind_nginx_an_edge_follows_and_soon_polls_without_a_body(
    nginx: Nginx, tmp_path: Path
) -> None:
    folder = nginx.root / "trust"
    made = await asyncio.to_thread(
        run_init, StoreSection(url=f"file://{folder}"), models=["m"], keys=tmp_path / "keys"
    )
    signed = SignedStore(folder, tmp_path / "keys", FolderStore(folder), made.root.read_bytes())
    await signed.release("m")
    behind = open_store(StoreSection(url=f"{nginx.url}/trust"))
    watched = WatchedStore(behind)
    trust = signed.trust("m", tmp_path / "node", store=watched)
    facts = await trust.refresh("latest")
    assert facts is not None
    assert await trust.fetch_head(facts) == make_head("m", 1)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:  # nginx's ETags may not be remembered in the first two seconds
        watched.bodies.clear()
        assert await trust.refresh("latest") is None
        if not watched.bodies:
            break
    assert watched.bodies == []
    await signed.release("m")
    fresh = await trust.refresh("latest")
    assert fresh is not None
    assert fresh.version == 2
    await behind.aclose()
    with pytest.raises(StoreReadOnly):
        await asyncio.to_thread(
            run_init, StoreSection(url=f"{nginx.url}/trust"), models=["n"], keys=tmp_path / "other/keys"
        )
    assert not (tmp_path / "other").exists()


def test_init_refuses_a_store_that_ignores_conditions_and_makes_no_keys(
    rclone_s3: RcloneS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKRCLONE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "rclone-secret")
    with pytest.raises(StoreDishonest):
        run_init(rclone_s3.section("fleet"), models=["m"], keys=tmp_path / "fleet/keys")
    assert list(tmp_path.iterdir()) == []


async def test_a_store_that_does_not_answer_is_unreachable_and_nothing_else(tmp_path: Path) -> None:
    from tests.support.signed_store import make_signed_store

    signed = await make_signed_store(tmp_path)
    await signed.add_model("m")
    await signed.release("m")
    await signed.trust("m", tmp_path / "node").refresh("latest")
    before = disk(tmp_path / "node")
    nobody = open_store(StoreSection(url="http://127.0.0.1:9/fleet"))
    trust = signed.trust("m", tmp_path / "node", store=nobody)
    with pytest.raises(StoreUnreachable) as caught:
        await trust.refresh("latest")
    assert caught.value.exit_status == 4
    assert disk(tmp_path / "node") == before
    assert trust.accepted("latest") is not None
    await nobody.aclose()
