"""One followed model: the machine of transitions.py, driven by what the store, the disk and the followers say."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, Final, TypeVar

from syncd.config import FollowSection
from syncd.crashpoint import reached
from syncd.edge import commands, transitions
from syncd.edge.actions import Actions
from syncd.edge.counted import Counted
from syncd.edge.documents import read_documents
from syncd.edge.face import node_face
from syncd.edge.fetch import Download
from syncd.edge.hooks import Hooks
from syncd.edge.install import installed_head
from syncd.edge.poll import PollClock, back_off_s
from syncd.edge.snapshot import snapshot
from syncd.edge.standing import Intention, Target, load_standing
from syncd.edge.transitions import TRANSITIONS, Event, State
from syncd.edge.votes import ask_voters, watch_probation
from syncd.errors import SyncdError
from syncd.node.followers import read_dead
from syncd.node.links import NodeFolder
from syncd.state.db import Database
from syncd.store.base import Store
from syncd.trust.verify import ModelTrust

_log: Final = logging.getLogger("syncd.edge")
_POLL_WITHIN_S: Final = 300.0
T = TypeVar("T")


class Follow(Actions):
    """Keeps one model of this node at what its channel releases. One task runs it; `snapshot` may be called anywhere.

    Args:
        trust_root: bytes of the fleet root.
        node: this machine's folder, whose daemon lock the caller holds.
        db: its state file.
        clock: when to poll; by default as the section says.
        name: this node's, for hooks.
        retry_s: the first pause after a failure; it doubles, up to 15 minutes or the poll interval.
    """

    def __init__(
        self,
        section: FollowSection,
        *,
        store: Store,
        trust_root: bytes,
        node: NodeFolder,
        db: Database,
        clock: PollClock | None = None,
        retry_s: float = 1.0,
        name: str = "",
    ) -> None:
        super().__init__(
            section, node.model_folder(section.model), db, node.path / "documents" / section.model
        )
        self._store = Counted(store)
        self._trust = ModelTrust(self._store, section.model, node.path / "trust" / section.model, trust_root)
        self._clock = clock or PollClock(section.poll, section.cron)
        self._retry_s = retry_s
        self.hooks = Hooks(section.hooks, self.folder, db, retry_s=retry_s, node=name)
        self._news = asyncio.Event()
        self._wake: asyncio.Event | None = None
        self._poll_failures = 0

    async def run(self, wake: asyncio.Event) -> None:
        """Follow until cancelled: polls now, at each tick of the clock and whenever `wake` is set.

        Needs no network to start. Raises ConfigInvalid for a bad cron line, Failed or DiskFull where the folder or
        state.db cannot be used.
        """
        self._wake = wake
        try:
            await self._in_thread(self._start)
            async with self._clock.ticking(wake), asyncio.TaskGroup() as group:
                wake.set()
                group.create_task(self._polling(wake), name=f"poll {self.section.model}")
                group.create_task(self._machine(), name=f"follow {self.section.model}")
                group.create_task(self.hooks.run(), name=f"hooks {self.section.model}")
                group.create_task(self._until_ended(), name=f"end {self.section.model}")
        finally:
            self._stop.set()

    async def _until_ended(self) -> None:
        """Tell threads to stop the moment that this is cancelled, while its sisters still wait for them."""
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self._stop.set()

    @property
    def wire_bytes(self) -> int:
        """Body bytes received for this model by this process."""
        return self._store.wire_bytes

    def poll_now(self) -> None:
        """Poll as soon as may be; from the event loop."""
        if self._wake is not None:
            self._wake.set()

    def look_again(self) -> None:
        """What people chose has changed; from the event loop."""
        self._news.set()

    async def obey(self, command: str, version: int | None, by: str) -> dict[str, Any]:
        """What a person tells this model: see `commands.obey`."""
        return await commands.obey(self, self._trust, command, version, by)

    async def obey_alone(self, command: str, version: int | None, by: str) -> dict[str, Any]:
        """The same where no daemon runs and this process holds its lock: a rollback is carried out at once."""
        self.facts = await self._in_thread(self._trust.accepted, self.section.channel)
        if command != "rollback":
            return await self.obey(command, version, by)
        await self._in_thread(self._start)
        if self.standing.intention is not None:
            await self._carry_out(self.standing.intention)
        asked = asyncio.create_task(self.obey(command, version, by))
        await asyncio.wait(
            {asked, asyncio.ensure_future(self._news.wait())}, return_when=asyncio.FIRST_COMPLETED
        )
        intention = await self._in_thread(self.intend, Event.TURNED_BACK, "")
        if intention is not None:
            await self._carry_out(intention)
        return await asked

    def snapshot(self) -> dict[str, Any]:
        """This model's object in `/v1/status`. Blocks for a few small reads."""
        return snapshot(self)

    def _start(self) -> None:
        """Take up the machine where the last process left it."""
        self.folder.make()
        self.folder.sweep()
        self.hooks.begin()
        self.dead_before = frozenset(each.id for each in read_dead(self.folder))
        try:
            self.standing = load_standing(self.db, self.section.model)
        except (ValueError, KeyError, TypeError) as error:
            self.say(
                "lost",
                f"the state file holds a state that this syncd does not know ({error}); it begins anew",
            )
        self.facts = self._trust.accepted(self.section.channel)
        standing = self.standing
        standing.state = transitions.AFTER_RESTART[standing.state]
        self.due = time.monotonic()
        if standing.intention is None and not self._matches_disk():
            self.say("lost", "the disk does not hold what the state file says; it is fetched again")
            standing.state, standing.target = State.IDLE, None
        standing.starts += 1
        standing.save(self.db, self.section.model)
        if standing.intention is None and standing.state is State.IDLE:
            with self.noting_errors():
                self.tidy()

    def _matches_disk(self) -> bool:
        target, state = self.standing.target, self.standing.state
        if state is State.IDLE:
            return True
        if target is None:
            return False
        if state in (State.INSTALLED, State.GATING, State.PROBATION):
            if installed_head(self.folder, target.version) != target.head_digest:
                return False
            with self.noting_errors():
                return state is not State.PROBATION or self.folder.read_link("current") == target.version
            return False
        return True

    # The poll.

    async def _polling(self, wake: asyncio.Event) -> None:
        while True:
            pause = None
            if self._poll_failures:
                pause = min(back_off_s(self._poll_failures, base_s=self._retry_s), self.section.poll)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(wake.wait(), pause)
            wake.clear()
            await self._poll_once()

    async def _poll_once(self) -> None:
        try:
            async with asyncio.timeout(_POLL_WITHIN_S):
                await self._trust.refresh(self.section.channel)
        except (SyncdError, TimeoutError) as error:
            self._poll_failures += 1
            self.poll_error = error if isinstance(error, SyncdError) else None
            self.note_error(error)
        else:
            if self.poll_error is not None:
                self.last_error = None
            self._poll_failures, self.poll_error = 0, None
            self.last_contact = time.time()
            self.facts = self._trust.accepted(self.section.channel)
            self._news.set()
        self.last_poll = time.time()

    # The machine.

    async def _machine(self) -> None:
        if self.standing.intention is not None:
            await self._carry_out(self.standing.intention)
        failures = 0
        while True:
            try:
                intention = await self._in_thread(self.intend, *await self._next_event())
            except (SyncdError, OSError) as error:  # somebody else wrote into the folder, or the disk fails
                self.note_error(error)
                failures += 1
                await asyncio.sleep(back_off_s(failures, base_s=self._retry_s))
                continue
            failures = 0
            if intention is not None:
                await self._carry_out(intention)

    async def _next_event(self) -> tuple[Event, str]:
        """What happens next in this state: the end of its work, or news from the channel."""
        standing, limit = self.standing, transitions.MAX_STARTS.get(self.standing.state)
        if limit is not None and standing.starts > limit:
            event = transitions.TOO_MANY_STARTS[standing.state]
            return event, f"the daemon ended {limit} times while {standing.state}"
        works = [
            asyncio.ensure_future(each) for each in (self.WORK[standing.state](self), self._await_news())
        ]
        try:
            done, _ = await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
            return next(each for each in works if each in done).result()
        finally:
            for each in works:
                each.cancel()
            await asyncio.gather(*works, return_exceptions=True)

    async def _await_news(self) -> tuple[Event, str]:
        while True:
            self._news.clear()
            event = await self._in_thread(self.news)
            if event is not None and (self.standing.state, event) in TRANSITIONS:
                return event, ""
            await self._news.wait()

    async def _carry_out(self, intention: Intention) -> None:
        """One row of the table: the intention is written, the action runs, the new state is written.

        An action that fails is run again after a pause, for ever: what serves goes on serving meanwhile.
        """
        row = TRANSITIONS.get((self.standing.state, intention.event))
        if row is None:
            self.standing.intention = None
            await self._in_thread(self._say_bug, intention)
            await asyncio.sleep(1.0)
            return
        failures = 0
        while True:
            try:
                await self._in_thread(self._act, intention, *row)
                self.hooks.wake.set()
                return
            except (SyncdError, OSError) as error:
                self.note_error(error)
                if (
                    intention.event is Event.VERIFIED
                ):  # a download that cannot be installed is one that failed
                    intention = Intention(
                        Event.EXHAUSTED, str(getattr(error, "what", error)), intention.target
                    )
                    row = TRANSITIONS[self.standing.state, Event.EXHAUSTED]
                    continue
                failures += 1
                await asyncio.sleep(back_off_s(failures, base_s=self._retry_s))

    def _say_bug(self, intention: Intention) -> None:
        self.say("bug", f"{intention.event} in {self.standing.state} has no row; the state is kept")

    def _act(self, intention: Intention, goes_to: State, action: transitions.Action) -> None:
        model, standing = self.section.model, self.standing
        came_from = standing.state
        standing.intention = intention
        standing.save(self.db, model)
        reached(transitions.crash_point(transitions.BEFORE, action))
        self.ACTIONS[action](self, intention)
        reached(transitions.crash_point(transitions.AFTER, action))
        standing.state, standing.intention, standing.reason = goes_to, None, intention.reason
        if goes_to is not came_from:
            standing.starts = 0
        if goes_to is not State.WAITING:
            standing.waits_for = ""
        standing.save(self.db, model)
        _log.info(
            "%s: %s on %s to %s (%s)", model, came_from, intention.event, goes_to, intention.reason or action
        )

    # The work of each state: it ends with the event that it leads to.

    async def _rest(self) -> tuple[Event, str]:
        await asyncio.get_running_loop().create_future()
        raise AssertionError("nothing ends this but a cancellation")

    async def _wait(self) -> tuple[Event, str]:
        if self.standing.waits_for:
            return await self._rest()  # a person ends it, and that is news
        await asyncio.sleep(max(0.0, self.due - time.monotonic()))
        return Event.DUE, ""

    async def _fetch(self) -> tuple[Event, str]:
        target = self.standing.target
        assert target is not None
        try:
            if await self._in_thread(self.is_whole_on_disk, target):
                return Event.VERIFIED, "it is on this disk already"
            return await self._download(target)
        except (SyncdError, OSError) as error:
            self.note_error(error)
            return Event.EXHAUSTED, str(getattr(error, "what", error))

    async def _download(self, target: Target) -> tuple[Event, str]:
        documents = await read_documents(self._trust, self.cache, self.section.model, target)
        sources = await self._in_thread(self.sources)
        download = Download(
            self._store,
            documents,
            await self._in_thread(node_face, documents),
            self.folder.incoming / str(target.version),
            sources=sources,
            progress=self.show_progress,
        )
        try:
            fetched = await download.run()
        finally:
            self.progress = None
        count = fetched.segments
        return (
            Event.VERIFIED,
            f"{count['kept']} segments kept, {count['reused']} reused, {count['plain']} plain",
        )

    async def _judge(self) -> tuple[Event, str]:
        if self.standing.unfit:
            return Event.UNFIT, self.standing.unfit
        target = self.standing.target
        assert target is not None
        has_model = await self._in_thread(self.has_model, target.version)
        return (Event.READY, "") if has_model else (Event.UNSERVABLE, "no model view: nothing to vote on")

    async def _gate(self) -> tuple[Event, str]:
        standing = self.standing
        assert standing.target is not None
        return await ask_voters(
            self.folder,
            standing.target.version,
            attempt=standing.attempt,
            asked=standing.asked,
            within_s=self.section.gate_within,
            culprit=standing.reason if standing.asked > 1 else "",
            dead_before=self.dead_before,
        )

    async def _probation(self) -> tuple[Event, str]:
        standing = self.standing
        assert standing.target is not None
        left = min(max(0.0, standing.probation_until - time.time()), self.section.probation)
        return await watch_probation(
            self.folder, standing.target.version, left_s=left, most_errors=self.section.probation_errors
        )

    WORK: ClassVar[dict[State, Callable[[Follow], Coroutine[Any, Any, tuple[Event, str]]]]] = {
        State.IDLE: _rest,
        State.WAITING: _wait,
        State.FETCHING: _fetch,
        State.INSTALLED: _judge,
        State.GATING: _gate,
        State.PROBATION: _probation,
    }

    async def _in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run blocking work to its end, even when cancelled: nothing of ours touches the disk afterwards."""
        future = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            with contextlib.suppress(SyncdError, OSError):
                await future
            raise
