"""The edge against real stores and folders: what is wanted arrives, what is not right never serves."""

import asyncio
import dataclasses
import hashlib
import json
import os
import signal
import stat

import numpy as np
import pytest

from syncd.edge.transitions import State
from syncd.edge.verify import verify_node
from syncd.node.followers import FollowerReport, Vote
from syncd.node.links import NodeFolder
from syncd.publisher.commit import open_model
from syncd.state import events, installed
from syncd.trust.names import channel_role
from syncd.trust.signing import channel_target
from tests.support.edge import assert_serves, edge, follower, silent_follower
from tests.support.published import Content, fresh_tensors, published_store, tensors


@pytest.fixture
async def published(tmp_path):
    store = await published_store(tmp_path / "pub")
    yield store
    await store.signed.store.aclose()


@pytest.fixture
def node(tmp_path):
    return tmp_path / "node"


async def test_the_first_version_is_installed_whole_and_serves(published, node):
    content = Content(tensors(1), b"optimizer" * 5000, {"labels.txt": b"cat\ndog\n"})
    await published.publish(content)
    async with edge(published, node) as it:
        await it.serves(1)
        assert_serves(it.folder, content.tensors)
        version = it.folder.version_folder(1)
        assert (version / "labels.txt").read_bytes() == b"cat\ndog\n"
        assert {each.name for each in version.iterdir()} == {
            "model.safetensors",
            "model.digests",
            "head.json",
            "labels.txt",
        }
        assert {stat.S_IMODE(each.stat().st_mode) for each in version.iterdir()} == {0o444}
        assert stat.S_IMODE(version.stat().st_mode) == 0o755
        signed = published.url / "models/m/versions/1/head.json"
        assert (version / "head.json").read_bytes() == signed.read_bytes()
        digests = json.loads((version / "model.digests").read_bytes())
        assert digests["format"] == "syncd.tensors/1"
        expected = {
            name: f"sha256:{hashlib.sha256(each.tobytes()).hexdigest()}"
            for name, each in content.tensors.items()
        }
        assert digests["tensors"] == expected
        assert list(it.folder.incoming.iterdir()) == []
        assert it.folder.read_link("next") is None
        shown = it.follow.snapshot()
        assert set(shown) >= {
            *(
                "model",
                "channel",
                "state",
                "serving",
                "available",
                "previous",
                "probation_until",
                "quarantined",
            ),
            *("last_poll", "last_change", "wire_bytes", "followers", "trust"),
        }
        assert set(shown["trust"]) == {"root", "targets", "snapshot", "timestamp", "channel-latest"}
    result = await verify_node(NodeFolder(node))
    assert result.ok
    assert result.checked_bytes > sum(each.nbytes for each in content.tensors.values())


async def test_a_head_only_update_fetches_the_head_and_reuses_the_rest_from_disk(published, node):
    await published.publish(Content(tensors(1, megabytes=20)))
    async with edge(published, node) as it:
        await it.serves(1)
        before = it.follow.wire_bytes
        await published.publish(Content(tensors(2, megabytes=20)))
        it.follow.poll_now()
        await it.serves(2)
        assert_serves(it.folder, tensors(2, megabytes=20))
        changed = 64 * 1024 * 4 + 33 * 2 + 8
        assert it.follow.wire_bytes - before < changed + 20_000
        assert it.folder.read_link("previous") == 1


async def test_a_version_with_numbers_that_are_not_finite_is_quarantined_and_the_old_one_serves_on(
    published, node
):
    await published.publish(Content(tensors(1)))
    async with edge(published, node) as it:
        await it.serves(1)
        poisoned = tensors(2)
        poisoned["head.half"][7] = np.nan
        await published.publish(Content(poisoned))
        it.follow.poll_now()
        await it.until(lambda: installed.quarantine(it.db, "m"))
        [given_up] = installed.quarantine(it.db, "m")
        assert (given_up.version, given_up.stage) == (2, "install")
        assert given_up.reason == "tensor head.half has 1 values that are not finite"
        await it.until(lambda: it.state is State.IDLE)
        assert it.serving == 1
        assert it.folder.versions() == [1]
        await it.polled()
        assert it.state is State.IDLE
        await published.publish(Content(tensors(3)))
        it.follow.poll_now()
        await it.serves(3)


async def test_one_refusal_quarantines_the_version_with_its_reason(published, node):
    await published.publish(Content(tensors(1)))
    async with edge(published, node) as it:
        await it.serves(1)
        with follower(it.folder) as voter:
            await published.publish(Content(tensors(2)))
            it.follow.poll_now()
            await it.until(lambda: it.folder.read_link("next") == 2)
            attempt = it.folder.read_offer().attempt
            voter.write(
                FollowerReport(version=1, vote=Vote(2, "refuse", "golden sample is off by 0.3", attempt))
            )
            await it.until(lambda: it.state is State.IDLE)
            [given_up] = installed.quarantine(it.db, "m")
            assert given_up.stage == "gate"
            assert given_up.reason == f"follower {voter.id}: golden sample is off by 0.3"
            assert it.serving == 1
            assert it.folder.read_link("next") is None


async def test_current_moves_when_every_voter_has_accepted_and_not_before(published, node):
    await published.publish(Content(tensors(1)))
    async with edge(published, node) as it:
        await it.serves(1)
        with follower(it.folder) as first, follower(it.folder) as second:
            await published.publish(Content(tensors(2)))
            it.follow.poll_now()
            await it.until(lambda: it.folder.read_link("next") == 2)
            attempt = it.folder.read_offer().attempt
            first.write(FollowerReport(version=1, vote=Vote(2, "accept", "", attempt)))
            await it.until(lambda: any(each["version"] == 1 for each in it.follow.snapshot()["followers"]))
            await it.until(lambda: it.state is State.GATING)
            assert (it.serving, it.state) == (1, State.GATING)
            second.write(FollowerReport(version=1, held=True))
            await it.serves(2)


async def test_a_voter_that_never_answers_is_asked_three_times_and_named(published, node):
    await published.publish(Content(tensors(1)))
    async with edge(published, node, gate_within="150ms") as it:
        await it.serves(1)
        with follower(it.folder) as voter:
            await published.publish(Content(tensors(2)))
            it.follow.poll_now()
            await it.until(lambda: installed.quarantine(it.db, "m"))
            reason = installed.quarantine(it.db, "m")[0].reason
            assert reason == f"follower {voter.id} did not answer within 0.15 s, 3 times asked"
            asked = [each for each in events.since(it.db, 0) if each.kind == "asked-again"]
            assert len(asked) == 2
            assert it.serving == 1


async def test_a_voter_that_dies_of_a_version_does_not_let_it_pass_by_being_dead(published, node):
    await published.publish(Content(tensors(1)))
    async with edge(published, node, gate_within="300ms") as it:
        await it.serves(1)
        with silent_follower(node, "m") as child:
            await published.publish(Content(tensors(2)))
            it.follow.poll_now()
            await it.until(lambda: it.folder.read_link("next") == 2)
            os.kill(child.pid, signal.SIGKILL)
            await it.until(lambda: installed.quarantine(it.db, "m"))
            assert f"follower {child.pid}-" in installed.quarantine(it.db, "m")[0].reason
            assert it.serving == 1


@pytest.mark.parametrize(
    "report",
    [
        FollowerReport(version=2, vote=Vote(2, "failed", "outputs are garbage")),
        FollowerReport(version=2, predictions=10, errors=1, nonfinite=2),
    ],
    ids=["failed-vote", "errors-and-non-finite-outputs"],
)
async def test_a_version_that_fails_in_probation_goes_back_by_itself_and_stays_away_after_a_restart(
    published, node, report
):
    await published.publish(Content(tensors(1)))
    keys = {"probation": "30s", "probation_errors": 3}
    async with edge(published, node, **keys) as it:
        await it.until(lambda: it.serving == 1)
        await published.publish(Content(tensors(2)))
    async with edge(published, node, probation="50ms") as it:
        await it.until(lambda: it.serving == 2)
    # The second version is on probation again, for its real length.
    async with edge(published, node, **keys) as it:
        await published.publish(Content(tensors(3)))
        it.follow.poll_now()
        await it.until(lambda: it.serving == 3 and it.state is State.PROBATION)
        with follower(it.folder) as voter:
            voter.write(
                dataclasses.replace(report, version=3, vote=report.vote and Vote(3, "failed", "garbage"))
            )
            await it.until(lambda: it.state is State.IDLE)
        assert it.serving == 2
        assert [each.version for each in installed.quarantine(it.db, "m")] == [3]
    async with edge(published, node, **keys) as it:
        await it.until(lambda: it.follow.last_poll)
        await it.polled()
        assert (it.serving, it.state) == (2, State.IDLE)
        assert_serves(it.folder, tensors(2))


async def test_a_flipped_bit_in_a_pack_is_never_installed_and_is_mended_by_a_later_fetch(published, node):
    await published.publish(Content(tensors(1)))
    async with edge(published, node) as it:
        await it.serves(1)
        known = set(published.packs())
        await published.publish(Content(fresh_tensors(2)))
        [pack] = set(published.packs()) - known
        good = pack.read_bytes()
        spoiled = bytearray(good)
        spoiled[len(good) // 3] ^= 1
        pack.chmod(0o644)
        pack.write_bytes(spoiled)
        it.follow.poll_now()
        await it.until(lambda: it.state is State.WAITING and it.follow.standing.failures >= 2)
        assert it.follow.last_error["code"] == "segment-corrupt"
        assert (it.serving, it.folder.versions()) == (1, [1])
        assert installed.quarantine(it.db, "m") == []
        assert_serves(it.folder, tensors(1))
        pack.write_bytes(good)
        await it.serves(2)
        assert_serves(it.folder, fresh_tensors(2))


async def test_a_document_of_a_later_format_is_refused_politely_and_the_old_version_serves_on(
    published, node, monkeypatch
):
    await published.publish(Content(tensors(1)))
    async with edge(published, node) as it:
        await it.serves(1)
        from tests.support import published as support

        monkeypatch.setattr(support, "SegmentTable", _LaterTable)
        await published.publish(Content(tensors(2)))
        it.follow.poll_now()
        await it.until(lambda: it.state is State.WAITING)
        shown = it.follow.snapshot()
        assert shown["last_error"]["code"] == "needs-newer-syncd"
        assert shown["last_error"]["where"]["version"] == 2
        assert (shown["serving"], shown["available"]) == (1, 2)
        monkeypatch.undo()
        await published.publish(Content(tensors(3)))
        it.follow.poll_now()
        await it.serves(3)


class _LaterTable:
    def __init__(self, rows, segments):
        from syncd.artifact.table import SegmentTable

        self.data = SegmentTable(rows, segments).to_bytes().replace(b'"syncd.table/1"', b'"syncd.table/2"')

    def to_bytes(self):
        return self.data


async def test_it_starts_and_serves_with_the_store_gone_and_reaches_the_newest_when_it_is_back(
    published, node
):
    await published.publish(Content(tensors(1)))
    async with edge(published, node) as it:
        await it.serves(1)
    await published.publish(Content(tensors(2)))
    away = published.url.with_name("away")
    published.url.rename(away)
    async with edge(published, node) as it:
        await it.until(lambda: it.follow.last_poll)
        shown = it.follow.snapshot()
        assert (shown["serving"], shown["state"], shown["reachable"]) == (1, "IDLE", False)
        assert shown["last_error"]["code"].startswith(("store", "object"))
        assert_serves(it.folder, tensors(1))
        away.rename(published.url)
        await it.serves(2)


async def test_versions_beyond_keep_go_unless_somebody_uses_them(published, node):
    async with edge(published, node) as it:
        locks = []
        for seed in range(1, 5):
            await published.publish(Content(tensors(seed)))
            it.follow.poll_now()
            await it.serves(seed)
            if seed == 1:
                locks.append(it.folder.lock_version(1))
        assert it.folder.versions() == [1, 3, 4]
        locks[0].close()
        await published.publish(Content(tensors(5)))
        it.follow.poll_now()
        await it.serves(5)
        assert it.folder.versions() == [4, 5]
        assert set(installed.installed(it.db, "m")) == {4, 5}


async def test_a_version_without_a_model_view_is_installed_as_its_files_and_offered_to_nobody(
    published, node
):
    content = Content({}, b"\x08an onnx file" * 1000, {"labels.txt": b"x"}, name="net/model.onnx")
    await published.publish(content)
    async with edge(published, node) as it:
        await it.until(it.folder.followers.is_dir)
        with follower(it.folder):
            await it.serves(1)
        files = it.folder.path / "current" / "files"
        assert (files / "net/model.onnx").read_bytes() == content.file
        assert (files / "labels.txt").read_bytes() == b"x"
        assert it.folder.read_offer() is None


async def test_a_channel_that_is_promoted_down_is_followed_without_fetching_anything(published, node):
    await published.publish(Content(tensors(1)))
    async with edge(published, node) as it:
        await it.serves(1)
        await published.publish(Content(fresh_tensors(2)))
        it.follow.poll_now()
        await it.serves(2)
        before = it.follow.wire_bytes
        await published.promote(1)
        it.follow.poll_now()
        await it.serves(1)
        assert it.follow.wire_bytes - before < 10_000


async def test_a_version_that_rotted_on_disk_is_fetched_again_before_it_serves_again(published, node):
    await published.publish(Content(tensors(1)))
    async with edge(published, node) as it:
        await it.serves(1)
        await published.publish(Content(tensors(2)))
        it.follow.poll_now()
        await it.serves(2)
        path = it.folder.version_folder(1) / "model.safetensors"
        path.chmod(0o644)
        with path.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\xff")
        await published.promote(1)
        it.follow.poll_now()
        await it.serves(1)
        assert_serves(it.folder, tensors(1))
        assert "rotten" in [each.kind for each in events.since(it.db, 0)]


async def test_a_node_that_serves_a_yanked_version_goes_back(published, node):
    await published.publish(Content(tensors(1)))
    async with edge(published, node) as it:
        await it.serves(1)
        await published.publish(Content(tensors(2)))
        it.follow.poll_now()
        await it.serves(2)
        await _yank(published, 2)
        it.follow.poll_now()
        await it.serves(1)
        await it.polled()
        assert (it.serving, it.state) == (1, State.IDLE)


async def _yank(published, version):
    signed = published.signed
    folder = signed.folder.parent / "publisher" / published.model
    repository = await open_model(signed.store, published.model, signed.root, signed.keys, folder)
    facts = repository.channels["latest"]
    yanked = dataclasses.replace(facts, yanked=(version,), release=facts.release + 1)
    await repository.sign({channel_role("latest"): channel_target(yanked)})


async def test_a_daemon_that_ends_too_often_in_probation_gives_the_version_up(published, node):
    await published.publish(Content(tensors(1)))
    async with edge(published, node) as it:
        await it.serves(1)
        await published.publish(Content(tensors(2)))
    for _ in range(4):
        async with edge(published, node, probation="1h") as it:
            await it.until(lambda: it.serving == 2 and it.state is State.PROBATION)
    async with edge(published, node, probation="1h") as it:
        await it.until(lambda: it.still)
        assert it.serving == 1
        assert "the daemon ended 3 times" in installed.quarantine(it.db, "m")[0].reason


async def test_a_changed_byte_on_the_node_is_found_by_verify_and_never_reused(published, node):
    await published.publish(Content(tensors(1)))
    async with edge(published, node) as it:
        await it.serves(1)
        path = it.folder.version_folder(1) / "model.safetensors"
        path.chmod(0o644)
        with path.open("r+b") as file:
            file.seek(100_000)
            byte = file.read(1)
            file.seek(100_000)
            file.write(bytes([byte[0] ^ 1]))
        found = await verify_node(NodeFolder(node), "m", 1)
        assert not found.ok
        assert found.bad[0]["what"] == "model.safetensors"
        await published.publish(Content(tensors(2)))
        it.follow.poll_now()
        await it.serves(2)
        assert_serves(it.folder, tensors(2))
        assert (await verify_node(NodeFolder(node), "m", 2)).ok


async def test_equal_empty_and_scalar_tensors_arrive_and_equal_ones_are_fetched_once(published, node):
    weight = np.random.default_rng(5).standard_normal((1024, 512), dtype=np.float32)
    odd = {
        "first": weight,
        "second": weight.copy(),
        "empty": np.empty((0, 7), np.float32),
        "scalar": np.array(3.5, np.float64),
        "zeros": np.zeros((1 << 19,), np.float32),
    }
    await published.publish(Content(odd))
    async with edge(published, node) as it:
        await it.serves(1)
        assert_serves(it.folder, odd)
        assert it.follow.wire_bytes < 1.2 * weight.nbytes
        again = {**odd, "third": weight.copy(), "first": weight + 1}
        await published.publish(Content(again))
        it.follow.poll_now()
        await it.serves(2)
        assert_serves(it.folder, again)
    assert (await verify_node(NodeFolder(node))).ok


async def test_a_state_that_this_syncd_does_not_know_is_said_and_does_not_stop_it(published, node):
    await published.publish(Content(tensors(1)))
    async with edge(published, node) as it:
        await it.serves(1)
        installed.save_machine(it.db, "m", "TELEPORTING", {})
    await published.publish(Content(tensors(2)))
    async with edge(published, node) as it:
        await it.serves(2)
        assert any(
            each.kind == "lost" and "TELEPORTING" in each.data["reason"] for each in events.since(it.db, 0)
        )


async def test_followers_that_died_with_the_machine_are_not_blamed_on_the_version(published, node):
    await published.publish(Content(tensors(1)))
    async with edge(published, node) as it:
        await it.serves(1)
        with silent_follower(node, "m") as child:
            await published.publish(Content(tensors(2)))
            it.follow.poll_now()
            await it.until(lambda: it.state is State.GATING)
            it.task.cancel()
            await asyncio.wait([it.task])
            child.kill()
            await asyncio.to_thread(child.wait)
    async with edge(published, node) as it:
        await it.serves(2)


@pytest.mark.root
async def test_a_full_disk_is_told_and_the_old_version_serves_on_until_there_is_room(published, small_disk):
    node = small_disk / "node"
    small = tensors(1, megabytes=0.5)
    await published.publish(Content(small))
    async with edge(published, node) as it:
        await it.serves(1)
        await published.publish(Content(fresh_tensors(2, megabytes=12)))
        it.follow.poll_now()
        await it.until(lambda: it.state is State.WAITING and it.follow.standing.failures >= 2)
        assert it.follow.last_error["code"] == "disk-full"
        assert (it.serving, it.folder.versions()) == (1, [1])
        assert_serves(it.folder, small)
        await published.publish(Content(tensors(3, megabytes=0.5)))
        it.follow.poll_now()
        await it.serves(3)
