"""The publisher of one watched folder: look, publish what is settled, remember, back off; one checkpoint at a time.

What goes wrong with one checkpoint holds up no other; what goes wrong with the store holds up all and loses none: the
folder is looked at again, and the state file knows what is done.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from syncd import allocator
from syncd.config import PublishSection
from syncd.errors import (
    DocumentInvalid,
    KeyUnusable,
    NeedsNewerSyncd,
    NotAuthentic,
    StoreError,
    SyncdError,
    UsageError,
)
from syncd.publisher.chores import Chores
from syncd.publisher.looking import Looker, newest_complete
from syncd.publisher.memory import Memory
from syncd.publisher.publish import Place, PublishResult, publish_at
from syncd.publisher.queue import PUT_ASIDE, Candidate, Queue, Wait
from syncd.publisher.version import Labels
from syncd.state import events
from syncd.state.db import Database
from syncd.store.base import Store
from syncd.store.probe import probe

_EVERYTHING_WAITS: Final = (
    StoreError,
    NotAuthentic,
    DocumentInvalid,
    NeedsNewerSyncd,
    KeyUnusable,
    UsageError,
)
"""What is wrong with the store, the keys or the configuration: every checkpoint waits, none is given up."""

log = logging.getLogger("syncd.publisher")


class Publisher:
    """Publishes what training writes into one folder, for one `[[publish]]` section.

    Args:
        folder: for accepted metadata, documents and scratch; outlives restarts, may be lost.
    """

    def __init__(
        self,
        section: PublishSection,
        *,
        store: Store,
        trust_root: bytes,
        keys: Path | None,
        db: Database,
        folder: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._section = section
        self._place = Place(store, trust_root, keys, db, folder)
        self._memory = Memory(db, section.model)
        self._clock = clock
        self._queue = Queue()
        self._all_wait = Wait()
        self._state = "starting"
        self._last_version: int | None = None
        self._last_error: dict[str, Any] | None = None
        self._progress = (0, 0)
        documents = self._place.of(section.model) / "documents"
        self._chores = Chores(section, db, documents, lambda: self._place.open_model(section.model), clock)
        self._flush_asked = False
        self._flushed = asyncio.Event()
        self._running = False
        self._wake = asyncio.Event()

    async def run(self, wake: asyncio.Event) -> None:
        """Look and publish until cancelled; an attempt that is cancelled leaves nothing half-done in the store.

        Args:
            wake: set by the clock or a person: look now.
        """
        self._wake = wake
        self._running = True
        try:
            self._last_version = await asyncio.to_thread(self._memory.last_version)
            async with Looker(self._section) as looker:
                await self._until_honest(wake)
                await self._first_look(looker)
                while True:
                    await self._round(looker)
                    if await looker.wait(wake, self._time_left()):
                        self._all_wait.until = 0.0
        finally:
            self._running = False
            self._state = "stopped"
            self._flushed.set()

    async def flush(self) -> None:
        """Publish what lies in the folder now, settled or not (it is proven complete all the same), and return.

        For a shutdown; the caller bounds it. What the store does not take stays for the next start.
        """
        if not self._running:
            return
        self._flushed.clear()
        self._flush_asked = True
        self._wake.set()
        await self._flushed.wait()

    def snapshot(self) -> dict[str, Any]:
        """This publisher in `published[]` of the status endpoint."""
        done, total = self._progress
        return {
            "model": self._section.model,
            "channel": self._section.channel,
            "watch": str(self._section.watch),
            "state": self._state,
            "last_version": self._last_version,
            "last_error": self._last_error,
            "pending": len(self._queue.pending),
            "seen": self._queue.seen,
            "ignored": self._queue.told(),
            "progress": {"done_bytes": done, "total_bytes": total} if self._state == "publishing" else None,
        }

    async def _until_honest(self, wake: asyncio.Event) -> None:
        """Prove the store before anything is entrusted to it; until it answers, wait longer and longer."""
        while True:
            try:
                await probe(self._place.store)
                return
            except StoreError as error:
                self._everything_waits(error)
            if self._flush_asked:
                self._end_flush()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, self._all_wait.until - self._clock())):
                    await wake.wait()
            wake.clear()

    async def _first_look(self, looker: Looker) -> None:
        """On the very first start with this folder: put aside what `backfill` does not want."""
        found = await looker.look()
        backfill = self._section.backfill
        if backfill == "all":
            wanted = [each.identity for each in found]
        elif backfill == "none":
            wanted = []
        else:
            newest = await asyncio.to_thread(newest_complete, found)
            wanted = [each.identity for each in found if newest is None or each.modified >= newest.modified]
        existing = [each.identity for each in found]
        why = f'it was there before the first start (backfill = "{backfill}")'
        await asyncio.to_thread(self._memory.first_start, self._section.watch, existing, wanted, why)

    async def _round(self, looker: Looker) -> None:
        """Publish everything that is ready; look again after each, for newer ones may have replaced older ones."""
        while True:
            hurry = self._flush_asked
            found = await looker.look()
            done = await asyncio.to_thread(self._done_of, found)
            self._queue.update(found, done)
            now = self._clock()
            ready = self._queue.next(now, hurry=hurry)
            if ready is None or (self._all_wait.until > now and not hurry):
                await self._do_chores()
                self._state = (
                    "backing-off"
                    if self._all_wait.until > now
                    else "waiting"
                    if self._queue.pending
                    else "idle"
                )
                if hurry:
                    self._end_flush()
                return
            if not await self._publish(ready) and hurry:
                self._end_flush()

    def _end_flush(self) -> None:
        self._flush_asked = False
        self._flushed.set()

    def _done_of(self, found: list[Candidate]) -> list[str]:
        return [each.identity for each in found if self._memory.of(each.identity) is not None]

    async def _publish(self, candidate: Candidate) -> bool:
        """One attempt; False if everything must wait."""
        self._state, self._progress = "publishing", (0, 0)
        labels = Labels(self._section.channel)
        try:
            result = await publish_at(
                self._place, candidate.path, self._section, labels, self._advance, identity=candidate.identity
            )
        except SyncdError as error:
            return await self._failed(candidate, error)
        finally:
            await asyncio.to_thread(allocator.give_back)
        self._all_wait = Wait()
        self._last_error = None
        self._last_version = max(result.version or 0, self._last_version or 0) or None
        self._queue.finish(candidate)
        self._chores.released()
        await self._tell(candidate, result)
        return True

    async def _failed(self, candidate: Candidate, error: SyncdError) -> bool:
        if isinstance(error, _EVERYTHING_WAITS) and not isinstance(error, PUT_ASIDE):
            self._everything_waits(error)
            return False
        if self._queue.fail(candidate, error, self._clock()):
            await self._say(
                "ignored" if candidate.identity not in self._pending() else "failed", candidate, error.what
            )
        if candidate.identity in self._pending() and not error.retry:
            self._last_error = error.as_dict()
        return True

    def _pending(self) -> set[str]:
        return {each.identity for each in self._queue.pending}

    def _everything_waits(self, error: SyncdError) -> None:
        self._last_error = error.as_dict()
        self._all_wait.longer(self._clock())
        self._state = "backing-off"
        wait_s = self._all_wait.until - self._clock()
        log.warning("%s waits %.0f s: %s", self._section.model, wait_s, error.what)

    async def _tell(self, candidate: Candidate, result: PublishResult) -> None:
        kind = "published" if result.new else "known"
        reason = f"{candidate.path.name} is version {result.version}"
        await self._say(kind, candidate, reason, version=result.version, bytes=result.uploaded_bytes)
        for note in result.notes:
            log.warning("%s@%s: %s", self._section.model, result.version, note)

    async def _say(self, kind: str, candidate: Candidate, reason: str, **more: Any) -> None:
        """Log, and record an event for people and for the status endpoint."""
        level = logging.INFO if kind in ("published", "known") else logging.WARNING
        log.log(level, "%s: %s: %s", self._section.model, kind, reason)
        data = {"path": str(candidate.path), "reason": reason, **more}
        await asyncio.to_thread(events.record, self._place.db, kind, self._section.model, **data)

    def _advance(self, done: int, total: int, phase: str) -> None:
        del phase
        self._progress = (done, total)

    async def _do_chores(self) -> None:
        """Renew, commit what waits, keep retention: what is due; not while everything waits, or in a hurry to end."""
        if self._all_wait.until > self._clock() or self._flush_asked:
            return
        try:
            done = await self._chores.run()
        except SyncdError as error:
            self._everything_waits(error)
            return
        if done and self._all_wait.failures:
            self._all_wait, self._last_error = Wait(), None

    def _time_left(self) -> float:
        """Seconds until something is due that no event tells of."""
        now = self._clock()
        due = [self._chores.next_at, self._queue.next_at()]
        if self._all_wait.until > now:
            due = [self._all_wait.until]
        return max(0.0, min(due) - now)
