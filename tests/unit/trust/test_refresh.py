"""Looking for news of a channel: how much is asked, what is kept, what works with no network."""

from __future__ import annotations

import asyncio
import shutil
import stat
from pathlib import Path

import pytest

from syncd.artifact.index import Index
from syncd.errors import Expired, StoreError, UnknownChannel, UnknownModel
from syncd.trust.sign import ONLINE_LIFE_S
from tests.support.signed_store import (
    SignedStore,
    WatchedStore,
    disk,
    make_head,
    make_signed_store,
    open_folder,
)


@pytest.fixture
async def signed(tmp_path: Path) -> SignedStore:
    made = await make_signed_store(tmp_path)
    await made.add_model("m")
    return made


async def test_a_channel_before_its_first_release_is_no_news(signed: SignedStore, tmp_path: Path) -> None:
    trust = signed.trust("m", tmp_path / "node")
    assert await trust.refresh("latest") is None
    assert trust.accepted("latest") is None
    assert Index.parse(await trust.index()) == Index("m")


async def test_a_release_is_verified_kept_and_told_once(signed: SignedStore, tmp_path: Path) -> None:
    await signed.release("m")
    trust = signed.trust("m", tmp_path / "node")
    facts = await trust.refresh("latest")
    assert facts is not None
    assert (facts.model, facts.channel, facts.version, facts.release) == ("m", "latest", 1, 1)
    assert set(facts.expires) == {"root", "timestamp", "snapshot", "targets", "channel-latest"}
    assert await trust.fetch_head(facts) == make_head("m", 1)
    assert await trust.refresh("latest") is None
    assert trust.accepted("latest") == facts
    assert stat.S_IMODE((tmp_path / "node").stat().st_mode) == 0o700
    assert [each.version for each in Index.parse(await trust.index()).versions] == [1]


async def test_an_idle_poll_is_one_conditional_request_without_a_body_and_so_after_a_restart(
    signed: SignedStore, tmp_path: Path
) -> None:
    await signed.release("m")
    watched = WatchedStore(signed.store)
    trust = signed.trust("m", tmp_path / "node", store=watched)
    await trust.refresh("latest")
    before = disk(tmp_path / "node")
    watched.asked.clear()
    watched.bodies.clear()
    assert await trust.refresh("latest") is None
    assert watched.asked == ["models/m/metadata/timestamp.json"]
    assert watched.bodies == []
    restarted = signed.trust("m", tmp_path / "node", store=watched)
    watched.asked.clear()
    assert await restarted.refresh("latest") is None
    assert sorted(watched.asked) == ["models/m/metadata/3.root.json", "models/m/metadata/timestamp.json"]
    assert watched.bodies == []
    watched.asked.clear()
    assert await restarted.refresh("latest") is None
    assert watched.asked == ["models/m/metadata/timestamp.json"]
    assert disk(tmp_path / "node") == before


async def test_a_change_costs_a_known_node_at_most_three_round_trips_to_a_verified_head(
    signed: SignedStore, tmp_path: Path
) -> None:
    await signed.release("m")
    watched = WatchedStore(signed.store)
    trust = signed.trust("m", tmp_path / "node", store=watched)
    await trust.refresh("latest")
    await signed.release("m")
    watched.rounds = 0
    facts = await trust.refresh("latest")
    assert facts is not None
    await trust.fetch_head(facts)
    assert facts.version == 2
    assert watched.rounds <= 3


async def test_a_fresh_node_has_a_verified_head_in_at_most_five_round_trips(
    signed: SignedStore, tmp_path: Path
) -> None:
    await signed.release("m")
    watched = WatchedStore(signed.store)
    trust = signed.trust("m", tmp_path / "node", store=watched)
    facts = await trust.refresh("latest")
    assert facts is not None
    await trust.fetch_head(facts)
    assert watched.rounds <= 5
    assert len(watched.asked) == len(set(watched.asked))


async def test_another_channels_release_is_no_news_and_a_second_channel_starts_from_nothing(
    signed: SignedStore, tmp_path: Path
) -> None:
    await signed.release("m")
    trust = signed.trust("m", tmp_path / "node")
    await trust.refresh("latest")
    await signed.release("m", "stable")
    assert await trust.refresh("latest") is None
    stable = await trust.refresh("stable")
    assert stable is not None
    assert (stable.version, stable.release) == (2, 1)


async def test_with_no_store_the_accepted_facts_are_there_and_a_refresh_says_so(
    signed: SignedStore, tmp_path: Path
) -> None:
    await signed.release("m")
    facts = await signed.trust("m", tmp_path / "node").refresh("latest")
    shutil.move(signed.folder, tmp_path / "away")
    trust = signed.trust("m", tmp_path / "node", store=open_folder(signed.folder))
    assert trust.accepted("latest") == facts
    before = disk(tmp_path / "node")
    with pytest.raises(StoreError):
        await trust.refresh("latest")
    assert disk(tmp_path / "node") == before


async def test_an_unknown_model_and_an_unknown_channel_are_told_by_name(
    signed: SignedStore, tmp_path: Path
) -> None:
    with pytest.raises(UnknownModel, match="'other'"):
        await signed.trust("other", tmp_path / "node").refresh("latest")
    with pytest.raises(UnknownChannel, match="'canary'"):
        await signed.trust("m", tmp_path / "node").refresh("canary")


async def test_expired_metadata_is_refused_idle_and_fresh_and_a_person_may_take_it(
    signed: SignedStore, tmp_path: Path
) -> None:
    import time

    await signed.release("m")
    later = time.time() + ONLINE_LIFE_S + 60
    trust = signed.trust("m", tmp_path / "known")
    facts = await trust.refresh("latest")
    before = disk(tmp_path / "known")
    known = signed.trust("m", tmp_path / "known", clock=lambda: later)
    with pytest.raises(Expired, match="timestamp"):
        await known.refresh("latest")
    assert disk(tmp_path / "known") == before
    assert known.accepted("latest") == facts
    with pytest.raises(Expired):
        await signed.trust("m", tmp_path / "fresh", clock=lambda: later).refresh("latest")
    assert disk(tmp_path / "fresh") == {}
    person = signed.trust("m", tmp_path / "person", clock=lambda: later, accept_expired=True)
    assert (await person.refresh("latest")) == facts


async def test_the_next_root_is_looked_for_hourly_and_at_every_change(
    signed: SignedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await signed.release("m")
    watched = WatchedStore(signed.store)
    trust = signed.trust("m", tmp_path / "node", store=watched)
    await trust.refresh("latest")
    watched.asked.clear()
    await trust.refresh("latest")
    assert "models/m/metadata/3.root.json" not in watched.asked
    monkeypatch.setattr("syncd.trust.verify.ROOT_PROBE_S", 0.0)
    await trust.refresh("latest")
    assert watched.asked.count("models/m/metadata/3.root.json") == 1
    monkeypatch.undo()
    await signed.release("m")
    watched.asked.clear()
    await trust.refresh("latest")
    assert "models/m/metadata/3.root.json" in watched.asked


async def test_news_whose_refresh_was_cut_short_is_told_by_the_next(
    signed: SignedStore, tmp_path: Path
) -> None:
    await signed.release("m")
    trust = signed.trust("m", tmp_path / "node")
    await trust.refresh("latest")
    await signed.release("m")
    cut = asyncio.create_task(trust.refresh("latest"))
    await asyncio.sleep(0)
    cut.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cut
    facts = await trust.refresh("latest")
    assert facts is not None
    assert facts.version == 2
