"""What people choose for a node: hold, pin, approve, roll back; kept over restarts, never against what serves."""

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

from syncd.config import HookSection, StoreSection
from syncd.edge.follow import Follow
from syncd.edge.transitions import State
from syncd.errors import Failed, NotInstalled, UnknownVersion, UsageError
from syncd.node.links import NodeFolder
from syncd.state import events, installed, wishes
from syncd.state.db import Database
from syncd.store.open import open_store
from tests.support.edge import assert_serves, edge, follower, section
from tests.support.published import Content, published_store, tensors

ME = "uid 0"


@pytest.fixture
async def published(tmp_path):
    store = await published_store(tmp_path / "pub")
    yield store
    await store.signed.store.aclose()


@pytest.fixture
def node(tmp_path):
    return tmp_path / "node"


async def publish(published, *seeds):
    for seed in seeds:
        await published.publish(Content(tensors(seed)))


async def test_held_it_takes_nothing_new_over_a_restart_and_resumed_it_goes_on(published, node):
    await publish(published, 1)
    async with edge(published, node) as it:
        await it.serves(1)
        answer = await it.follow.obey("hold", None, ME)
        assert answer == {"model": "m", "version": 1, "previous": None, "held": True, "pinned": None}
        await publish(published, 2)
        await it.polled()
        await it.until(lambda: it.state is State.WAITING)
        assert it.folder.versions() == [1]
        shown = it.follow.snapshot()
        assert (shown["held"], shown["waits_for"], shown["target"]) == (True, "hold", 2)
        assert shown["reason"] == "this node is held: `syncd resume m` ends it"
    async with edge(published, node) as it:
        await it.until(lambda: it.follow.last_poll is not None)
        await it.polled()
        assert (it.state, it.serving, it.folder.versions()) == (State.WAITING, 1, [1])
        await it.follow.obey("resume", None, ME)
        await it.serves(2)
        assert it.follow.snapshot()["held"] is False
        said = [(each.data["command"], each.data["by"]) for each in all_events(it, "command")]
        assert said == [("hold", ME), ("resume", ME)]


async def test_held_while_voters_are_asked_the_offer_is_withdrawn_and_nothing_is_fetched_twice(
    published, node
):
    await publish(published, 1)
    async with edge(published, node) as it:
        await it.serves(1)
        with follower(it.folder):
            await publish(published, 2)
            it.follow.poll_now()
            await it.until(lambda: it.folder.read_link("next") == 2)
            await it.follow.obey("hold", None, ME)
            await it.until(lambda: it.state is State.WAITING)
            assert it.folder.read_link("next") is None
            assert it.serving == 1
            assert it.folder.versions() == [1, 2]
            before = it.follow.wire_bytes
        await it.follow.obey("resume", None, ME)
        await it.serves(2)
        assert it.follow.wire_bytes - before < 20_000


async def test_rolled_back_it_serves_the_version_before_and_takes_the_next_but_not_the_same(published, node):
    await publish(published, 1, 2)
    async with edge(published, node) as it:
        await it.serves(2)
        with pytest.raises(Failed, match="no version to go back to from 2"):
            await it.follow.obey("rollback", None, ME)
        assert (it.serving, installed.quarantine(it.db, "m")) == (2, [])
        await publish(published, 3)
        it.follow.poll_now()
        await it.serves(3)
        answer = await it.follow.obey("rollback", None, ME)
        assert (answer["version"], answer["previous"]) == (2, 3)
        assert it.serving == 2
        assert_serves(it.folder, tensors(2))
        [given_up] = installed.quarantine(it.db, "m")
        assert (given_up.version, given_up.stage, given_up.reason) == (3, "hand", "rolled back by hand")
        await it.polled()
        assert (it.state, it.serving) == (State.IDLE, 2)
    async with edge(published, node) as it:
        await it.until(lambda: it.still)
        await it.polled()
        assert it.serving == 2
        await publish(published, 4)
        it.follow.poll_now()
        await it.serves(4)


async def test_rolled_back_in_probation_it_goes_back_at_once(published, node):
    await publish(published, 1)
    async with edge(published, node) as it:
        await it.serves(1)
    await publish(published, 2)
    async with edge(published, node, probation="1h") as it:
        await it.until(lambda: it.state is State.PROBATION)
        answer = await it.follow.obey("rollback", None, ME)
        assert (answer["version"], answer["previous"]) == (1, 2)
        await it.until(lambda: it.state is State.IDLE)


async def test_approved_a_version_out_of_quarantine_is_taken_after_all(published, node):
    await publish(published, 1, 2)
    async with edge(published, node) as it:
        await it.serves(2)
        await publish(published, 3)
        it.follow.poll_now()
        await it.serves(3)
        await it.follow.obey("rollback", None, ME)
        answer = await it.follow.obey("approve", 3, ME)
        assert (answer["version"], answer["previous"]) == (3, 2)
        await it.serves(3)
        assert installed.quarantine(it.db, "m") == []


async def test_by_hand_nothing_is_fetched_before_each_version_is_approved(published, node):
    await publish(published, 1)
    async with edge(published, node, approve="manual") as it:
        await it.until(lambda: it.state is State.WAITING)
        shown = it.follow.snapshot()
        assert (shown["waits_for"], shown["reason"]) == ("approval", "waits for `syncd approve m@1`")
        assert (it.folder.versions(), it.serving) == ([], None)
        with pytest.raises(UnknownVersion, match="no version 7 of m waits"):
            await it.follow.obey("approve", 7, ME)
        await it.follow.obey("approve", 1, ME)
        await it.serves(1)
        await publish(published, 2)
        await it.polled()
        await it.until(lambda: it.state is State.WAITING)
        await publish(published, 3)
        await it.polled()
        await it.until(lambda: it.follow.snapshot()["target"] == 3)
        assert it.serving == 1
    async with edge(published, node, approve="manual") as it:
        await it.until(lambda: it.state is State.WAITING)
        await it.follow.obey("approve", 3, ME)
        await it.serves(3)
        assert it.folder.versions() == [1, 3]


async def test_pinned_it_fetches_that_version_and_stays_on_it_until_it_is_unpinned(published, node):
    await publish(published, 1, 2, 3)
    async with edge(published, node) as it:
        await it.serves(3)
        with pytest.raises(UnknownVersion, match="m has no version 9"):
            await it.follow.obey("pin", 9, ME)
        answer = await it.follow.obey("pin", 1, ME)
        assert answer == {"model": "m", "version": 1, "previous": 3, "held": False, "pinned": 1}
        await it.serves(1)
        assert_serves(it.folder, tensors(1))
    async with edge(published, node) as it:
        await publish(published, 4)
        await it.until(lambda: it.still)
        await it.polled()
        assert (it.state, it.serving, it.follow.snapshot()["pinned"]) == (State.IDLE, 1, 1)
        answer = await it.follow.obey("unpin", None, ME)
        assert (answer["version"], answer["previous"], answer["pinned"]) == (4, 1, None)
        await it.serves(4)


async def test_a_version_in_quarantine_is_not_pinned_and_nothing_changes(published, node):
    await publish(published, 1)
    async with edge(published, node) as it:
        await it.serves(1)
        poisoned = tensors(2)
        poisoned["head.half"][7] = np.nan
        await published.publish(Content(poisoned))
        it.follow.poll_now()
        await it.until(lambda: installed.quarantine(it.db, "m") and it.state is State.IDLE)
        with pytest.raises(UsageError, match="version 2 is in quarantine here: tensor"):
            await it.follow.obey("pin", 2, ME)
        assert wishes.load(it.db, "m") == wishes.Wishes()


@pytest.mark.parametrize(
    ("command", "version"), [("pin", None), ("approve", None), ("hold", 3), ("rollback", 1), ("dance", None)]
)
async def test_a_command_that_makes_no_sense_is_refused_and_leaves_no_trace(
    published, node, command, version
):
    await publish(published, 1)
    async with edge(published, node) as it:
        await it.serves(1)
        with pytest.raises(UsageError):
            await it.follow.obey(command, version, ME)
        assert (wishes.load(it.db, "m"), all_events(it, "command")) == (wishes.Wishes(), [])


async def test_before_the_first_install_there_is_nothing_to_roll_back(published, node):
    await publish(published, 1)
    async with edge(published, node, approve="manual") as it:
        await it.until(lambda: it.state is State.WAITING)
        with pytest.raises(NotInstalled, match="no version of m serves"):
            await it.follow.obey("rollback", None, ME)


async def test_with_no_daemon_a_choice_is_kept_and_a_rollback_carried_out_at_once(published, node):
    await publish(published, 1)
    async with edge(published, node) as it:
        await it.serves(1)
        await publish(published, 2)
        it.follow.poll_now()
        await it.serves(2)
    folder = NodeFolder(node)
    store = open_store(StoreSection(url="http://127.0.0.1:9/nobody"))  # and with no network
    with folder.daemon_lock(), Database(node / "state.db") as db:

        def follow():
            return Follow(section("m"), store=store, trust_root=published.signed.root, node=folder, db=db)

        answer = await follow().obey_alone("rollback", None, ME)
        assert (answer["version"], answer["previous"]) == (1, 2)
        assert folder.model_folder("m").read_link("current") == 1
        await follow().obey_alone("hold", None, ME)
        answer = await follow().obey_alone("pin", 1, ME)
        assert (answer["held"], answer["pinned"]) == (True, 1)
    await store.aclose()
    async with edge(published, node) as it:
        await it.until(lambda: it.still)
        shown = it.follow.snapshot()
        assert (shown["serving"], shown["held"], shown["pinned"]) == (1, True, 1)
        assert [each["stage"] for each in shown["quarantined"]] == ["hand"]


def all_events(it, kind):
    return [each for each in events.since(it.db, 0) if each.kind == kind]


def hook(**keys):
    return HookSection.model_validate({"within": "5s", **keys})


async def test_hooks_run_after_install_swap_and_rollback_and_their_outcome_is_told(published, node, tmp_path):
    told = tmp_path / "told"
    script = (
        f'cat >> {told}; echo >> {told}; echo "$SYNCD_EVENT $SYNCD_MODEL $SYNCD_VERSION" >> {told}; echo fine'
    )
    hooks = [hook(on=kind, command=["sh", "-c", script]) for kind in ("install", "swap", "rollback")]
    hooks.append(hook(on="swap", command=["sh", "-c", "echo broken >&2; exit 3"]))
    await publish(published, 1)
    async with edge(published, node, hooks=hooks) as it:
        await it.serves(1)
        await publish(published, 2)
        it.follow.poll_now()
        await it.serves(2)
        await it.follow.obey("rollback", None, ME)

        def outcomes():
            return [(e.data["on"], e.data["version"], e.data["ok"]) for e in all_events(it, "hook")]

        expected = [
            *[("install", 1, True), ("swap", 1, True), ("swap", 1, False)],
            *[("install", 2, True), ("swap", 2, True), ("swap", 2, False), ("rollback", 2, True)],
        ]
        await it.until(lambda: outcomes() == expected)
        lines = told.read_text().split("\n")
        assert [each for each in lines if each and each[0] != "{"] == [
            *["install m 1", "swap m 1", "install m 2", "swap m 2", "rollback m 2"]
        ]
        assert json.loads(lines[2])["event"] == "swap"
        shown = it.follow.snapshot()["hooks"]
        assert [each["last"]["ok"] for each in shown] == [True, True, True, False]
        assert shown[3]["last"]["detail"] == "exit status 3: broken"
        assert shown[0]["last"]["detail"] == "fine"


async def test_a_hook_that_hangs_is_killed_with_its_children_and_holds_nothing_up(published, node, tmp_path):
    pid = tmp_path / "pid"
    command = ["sh", "-c", f"sleep 600 & echo $! > {pid}; wait"]
    await publish(published, 1)
    async with edge(published, node, hooks=[hook(on="install", command=command, within="1s")]) as it:
        await it.serves(1)
        await publish(published, 2)
        it.follow.poll_now()
        await it.until(lambda: it.serving == 2)
        await it.until(lambda: len(all_events(it, "hook")) == 2)
        said = all_events(it, "hook")[0].data
        assert (said["ok"], said["detail"]) == (False, "did not end within 1 s and was killed")
        await it.until(lambda: not_running(int(pid.read_text())))


def not_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def test_a_reason_that_no_environment_can_hold_does_not_stop_a_hook(published, node, tmp_path):
    told = tmp_path / "told"
    command = ["sh", "-c", f'printf %s "$SYNCD_REASON" > {told}.part; mv {told}.part {told}']
    await publish(published, 1)
    async with edge(published, node, hooks=[hook(on="swap", command=command)]) as it:
        await it.serves(1)
        await it.until(told.exists)
        told.unlink()
        events.record(it.db, "swap", "m", version=1, reason="a\0b\ud800c")
        it.follow.hooks.wake.set()
        await it.until(told.exists)
        assert told.read_text() == "a b?c"
        assert [each.data["ok"] for each in all_events(it, "hook")[:1]] == [True]


async def test_a_hook_that_was_running_when_the_daemon_died_runs_again_and_one_that_is_new_begins_now(
    published, node, tmp_path
):
    told = tmp_path / "told"
    slow = [hook(on="swap", command=["sh", "-c", f"echo $SYNCD_VERSION >> {told}; sleep 600"], within="1h")]
    fast = [hook(on="swap", command=["sh", "-c", f"echo $SYNCD_VERSION >> {told}"])]
    await publish(published, 1)
    async with edge(published, node) as it:  # none yet: what happens here is told to nobody
        await it.serves(1)
    await publish(published, 2)
    async with edge(published, node, hooks=slow) as it:
        await it.until(lambda: it.serving == 2)
        await it.until(told.exists)
    async with edge(published, node, hooks=fast) as it:
        await it.until(lambda: len(all_events(it, "hook")) == 1)
    assert told.read_text().split() == ["2", "2"]


async def test_an_http_hook_is_tried_again_until_it_is_taken_and_a_program_that_is_not_there_is_told(
    published, node
):
    requests = []

    async def answer(reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length: ")[2].split()[0])
        requests.append((head, json.loads(await reader.readexactly(length))))
        status = b"200 OK" if len(requests) == 3 else b"500 Broken"
        writer.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    hooks = [
        hook(on="swap", http=f"http://user:secret@127.0.0.1:{port}/load?x=secret"),
        hook(on="swap", command=["/nowhere/program"]),
    ]
    await publish(published, 1)
    async with edge(published, node, hooks=hooks) as it:
        await it.serves(1)
        await it.until(lambda: len(all_events(it, "hook")) == 2)
        told, missing = (each.data for each in all_events(it, "hook"))
        assert (told["ok"], told["attempts"], told["detail"]) == (True, 3, "status 200")
        assert told["hook"] == f"http://127.0.0.1:{port}/load"
        assert (missing["ok"], missing["attempts"]) == (False, 1)
        assert "No such file" in missing["detail"]
        assert "ce-type: syncd.swap" in requests[2][0]
        assert requests[2][1]["version"] == 1
        assert "secret" not in json.dumps(it.follow.snapshot())
    server.close()
    await server.wait_closed()
