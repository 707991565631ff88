"""Committing: one step makes a version visible; races, kills and lost answers lose nothing and use no number twice."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from syncd.artifact.index import Index
from syncd.errors import DocumentInvalid, KeyUnusable, LostRace, UnknownChannel, UnknownVersion
from syncd.publisher.commit import STEPS, open_model
from syncd.publisher.renew import renew_if_due
from syncd.store.base import Mode
from syncd.trust import names
from syncd.trust.keys import generate_key, model_key_path
from syncd.trust.sign import ONLINE_LIFE_S
from tests.support.signed_store import (
    SignedStore,
    WatchedStore,
    make_head,
    make_signed_store,
    open_folder,
)


@pytest.fixture
async def signed(tmp_path: Path) -> SignedStore:
    made = await make_signed_store(tmp_path)
    await made.add_model("m")
    return made


def numbered(signed: SignedStore) -> dict[str, bytes]:
    folder = signed.path("m", "metadata")
    return {path.name: path.read_bytes() for path in folder.glob("[0-9]*.json")}


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


async def index_of(signed: SignedStore, node: Path) -> list[int]:
    return [each.version for each in Index.parse(await signed.trust("m", node).index()).versions]


async def test_a_commit_enters_the_index_and_moves_the_channel_with_a_release_counter(
    signed: SignedStore, tmp_path: Path
) -> None:
    first = await signed.release("m")
    second = await signed.release("m")
    assert (first.version, first.release, second.version, second.release) == (1, 1, 2, 2)
    assert await index_of(signed, tmp_path / "node") == [1, 2]
    facts = await signed.trust("m", tmp_path / "node").refresh("latest")
    assert facts is not None
    assert (facts.version, facts.release, dict(facts.rollout)) == (2, 2, {"percent": 100})


async def test_the_timestamp_hints_at_exactly_what_a_reader_wants_next(signed: SignedStore) -> None:
    await signed.release("m")
    body = json.loads(signed.path("m", "metadata/timestamp.json").read_bytes())["signed"]
    assert body["x-syncd-next"] == {
        "channel-latest": ["metadata/2.channel-latest.json", "versions/1/head.json"],
        "channel-stable": ["metadata/1.channel-stable.json"],
        "snapshot": ["metadata/2.snapshot.json"],
        "targets": ["metadata/1.targets.json"],
        "versions": ["metadata/2.versions.json", "index/1.json"],
    }
    assert abs(body["x-syncd-signed-at"] - time.time()) < 60
    for wanted in body["x-syncd-next"].values():
        assert all(signed.path("m", name).is_file() for name in wanted)


async def test_an_older_version_that_finishes_later_enters_the_index_only(
    signed: SignedStore, tmp_path: Path
) -> None:
    repository = await signed.repository("m")
    older, newer = await repository.claim(), await repository.claim()
    await repository.commit(version=newer, head=make_head("m", newer), channel="latest")
    late = await repository.commit(version=older, head=make_head("m", older), channel="latest")
    assert (late.channel, late.release) == (None, None)
    assert await index_of(signed, tmp_path / "node") == [older, newer]
    facts = await signed.trust("m", tmp_path / "node").refresh("latest")
    assert facts is not None
    assert (facts.version, facts.release) == (newer, 1)


async def test_a_person_may_promote_up_and_down_and_edges_follow(signed: SignedStore, tmp_path: Path) -> None:
    await signed.release("m")
    await signed.release("m")
    trust = signed.trust("m", tmp_path / "node")
    await trust.refresh("latest")
    repository = await signed.repository("m")
    down = await repository.promote(1, "latest")
    facts = await trust.refresh("latest")
    assert facts is not None
    assert (facts.version, facts.release, down.release) == (1, 3, 3)
    assert await trust.fetch_head(facts) == make_head("m", 1)
    with pytest.raises(UnknownVersion, match="no version 9"):
        await repository.promote(9, "latest")
    with pytest.raises(UnknownChannel, match="'canary'"):
        await repository.promote(1, "canary")


async def test_the_loser_of_a_race_has_destroyed_nothing_plans_anew_and_wins(
    signed: SignedStore, tmp_path: Path
) -> None:
    loser = await signed.repository("m")
    version = await loser.claim()
    await signed.release("m")
    before = numbered(signed)
    timestamp = signed.path("m", "metadata/timestamp.json").read_bytes()
    with pytest.raises(LostRace, match="committed first"):
        await loser.commit(version=version, head=make_head("m", version), channel="latest")
    assert signed.path("m", "metadata/timestamp.json").read_bytes() == timestamp
    assert {name: data for name, data in numbered(signed).items() if name in before} == before
    await loser.commit(version=version, head=make_head("m", version), channel="stable")
    assert await index_of(signed, tmp_path / "node") == [1, 2]


async def test_committing_again_after_a_lost_answer_finds_it_done(
    signed: SignedStore, tmp_path: Path
) -> None:
    repository = await signed.repository("m")
    version = await repository.claim()
    first = await repository.commit(version=version, head=make_head("m", version), channel="latest")
    kept = contents(signed.folder)
    again = await repository.commit(version=version, head=make_head("m", version), channel="latest")
    assert again == first
    assert contents(signed.folder) == kept


async def test_another_content_under_a_committed_number_is_refused(signed: SignedStore) -> None:
    repository = await signed.repository("m")
    version = await repository.claim()
    await repository.commit(version=version, head=make_head("m", version), channel="latest")
    kept = contents(signed.folder)
    with pytest.raises(LostRace, match="other content"):
        await repository.commit(
            version=version, head=make_head("m", version, layout=b"other"), channel="latest"
        )
    with pytest.raises(DocumentInvalid, match="m@1"):
        await repository.commit(version=2, head=make_head("m", 1), channel="latest")
    assert contents(signed.folder) == kept


async def test_without_the_right_key_nothing_is_written(signed: SignedStore, tmp_path: Path) -> None:
    kept = contents(signed.folder)
    reader = await open_model(signed.store, "m", signed.root, None, tmp_path / "reader")
    with pytest.raises(KeyUnusable, match="without keys"):
        await reader.sign({})
    other = tmp_path / "other-keys"
    generate_key(model_key_path(other, "m"))
    with pytest.raises(KeyUnusable, match="not the one"):
        await open_model(signed.store, "m", signed.root, other, tmp_path / "reader")
    assert contents(signed.folder) == kept


async def test_a_publisher_refuses_a_store_that_was_set_back(signed: SignedStore, tmp_path: Path) -> None:
    from syncd.errors import RolledBack

    old = signed.copy("old")
    await signed.release("m")
    back = SignedStore(old, signed.keys, open_folder(old), signed.root)
    with pytest.raises(RolledBack):
        await back.repository("m")


async def test_renewal_at_half_time_signs_everything_of_ours_again_with_equal_content(
    signed: SignedStore, tmp_path: Path
) -> None:
    await signed.release("m")
    trust = signed.trust("m", tmp_path / "node")
    before = await trust.refresh("latest")
    repository = await signed.repository("m")
    kept = contents(signed.folder)
    assert await renew_if_due(repository) == ()
    assert contents(signed.folder) == kept
    renewed = await renew_if_due(repository, time.time() + ONLINE_LIFE_S / 2 + 60)
    assert set(renewed) == {"channel-latest", "channel-stable", "versions", "snapshot", "timestamp"}
    assert await trust.refresh("latest") is None
    after = trust.accepted("latest")
    assert before is not None
    assert after is not None
    assert after.says_the_same(before)
    assert await renew_if_due(repository) == ()


async def test_the_whole_commit_reads_in_the_store_as_the_old_release_or_the_new_one(
    signed: SignedStore, tmp_path: Path
) -> None:
    """A fresh reader after every single put."""
    await signed.release("m")
    seen: list[int] = []
    count = 0

    class Stepped(WatchedStore):
        async def put(self, key: str, data: bytes, *, mode: Mode) -> str | None:
            nonlocal count
            etag = await super().put(key, data, mode=mode)
            count += 1
            facts = await signed.trust("m", tmp_path / f"fresh-{count}").refresh("latest")
            assert facts is not None
            seen.append(facts.version)
            assert len(await index_of(signed, tmp_path / f"fresh-{count}")) == facts.version
            return etag

    repository = await open_model(
        Stepped(signed.store), "m", signed.root, signed.keys, tmp_path / "publisher" / "m"
    )
    version = await repository.claim()
    await repository.commit(version=version, head=make_head("m", version), channel="latest")
    assert seen == [1] * (count - 1) + [2]
    assert count >= 6


PUBLISHER = """
import asyncio, sys
from pathlib import Path
from syncd import crashpoint
from syncd.errors import LostRace
from syncd.publisher.commit import open_model
from tests.support.signed_store import make_head, open_folder

async def main(base, name, commits):
    root = (base / "store/fleet/1.root.json").read_bytes()
    repository = await open_model(open_folder(base / "store"), "m", root, base / "keys", base / "publisher" / name)
    for _ in range(commits):
        version = await repository.claim()
        while True:
            try:
                done = await repository.commit(
                    version=version, head=make_head("m", version), channel="latest", step=crashpoint.reached
                )
                break
            except LostRace:
                continue
        print(done.version, done.release, flush=True)

asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
"""


def publisher(base: Path, name: str, commits: int, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PUBLISHER, str(base), name, str(commits)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environ},
        stdout=subprocess.PIPE,
        text=True,
    )


async def test_two_publishers_of_twenty_commits_each_lose_nothing_and_use_no_number_twice(
    signed: SignedStore, tmp_path: Path
) -> None:
    seen: dict[str, bytes] = {}
    clashes: list[str] = []

    def look() -> None:
        for name, data in numbered(signed).items():
            if seen.setdefault(name, data) != data:
                clashes.append(name)

    racers = [publisher(tmp_path, name, 20) for name in ("a", "b")]
    deadline = time.monotonic() + 150
    while any(each.poll() is None for each in racers) and time.monotonic() < deadline:
        await asyncio.to_thread(look)
        await asyncio.sleep(0.2)
    outputs = [each.communicate(timeout=10)[0] for each in racers]
    assert [each.returncode for each in racers] == [0, 0]
    look()
    assert clashes == []
    for name, data in numbered(signed).items():
        assert json.loads(data)["signed"]["version"] == int(name.split(".")[0])
    versions = sorted(int(line.split()[0]) for output in outputs for line in output.splitlines())
    assert len(versions) == 40
    assert len(set(versions)) == 40
    assert await index_of(signed, tmp_path / "node") == versions
    facts = await signed.trust("m", tmp_path / "node").refresh("latest")
    assert facts is not None
    assert facts.version == max(versions)
    releases = [
        int(line.split()[1]) for output in outputs for line in output.splitlines() if "None" not in line
    ]
    assert len(releases) == len(set(releases))
    assert facts.release == max(releases)


@pytest.mark.parametrize("point", STEPS)
async def test_killed_at_any_step_the_old_release_reads_and_the_next_publisher_goes_on(
    signed: SignedStore, tmp_path: Path, point: str
) -> None:
    await signed.release("m")
    killed = publisher(tmp_path, "m", 1, SYNCD_CRASH_AT=point)
    await asyncio.to_thread(killed.communicate, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    left = numbered(signed)
    facts = await signed.trust("m", tmp_path / "node").refresh("latest")
    assert facts is not None
    assert facts.version == (2 if point == "publisher.after_timestamp" else 1)
    release = await signed.release("m")
    assert release.version == 3
    assert {name: data for name, data in numbered(signed).items() if name in left} == left
    expected = [1, 2, 3] if point == "publisher.after_timestamp" else [1, 3]
    assert await index_of(signed, tmp_path / "node") == expected


async def test_a_claim_is_given_once(signed: SignedStore) -> None:
    repositories = [await signed.repository("m") for _ in range(4)]
    claimed = await asyncio.gather(*(each.claim() for each in repositories for _ in range(5)))
    assert sorted(claimed) == list(range(1, 21))
    nonces = {json.loads(signed.path("m", names.claim(each)).read_bytes())["nonce"] for each in claimed}
    assert len(nonces) == 20
