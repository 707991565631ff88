"""What a running publisher does besides publishing: renew signatures, commit waiting promotions, keep retention.

Each chore has its own next time; none holds up a checkpoint, for they run when nothing is ready.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from syncd.config import PublishSection
from syncd.errors import LostRace, SyncdError
from syncd.publisher.commit import ModelRepository
from syncd.publisher.pending import commit_pending, waiting
from syncd.publisher.renew import CHECK_EVERY_S, renew_if_due
from syncd.publisher.retention import sweep
from syncd.state import events
from syncd.state.db import Database
from syncd.trust import names

SWEEP_EVERY_S: Final = 3600.0
ORPHANS_EVERY_S: Final = 86400.0
_SWEEP_FIRST_S: Final = 60.0  # not in the way of a start
_AGAIN_S: Final = 5.0  # after a lost race
_AFTER_ERROR_S: Final = 60.0
log = logging.getLogger("syncd.publisher")


class Chores:
    """The chores of one model's publisher. One task at a time.

    Args:
        documents: a folder that keeps documents by digest.
        open_model: the model's verified state and the right to sign, anew each time.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        section: PublishSection,
        db: Database,
        documents: Path,
        open_model: Callable[[], Awaitable[ModelRepository]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._section = section
        self._db = db
        self._documents = documents
        self._open = open_model
        self._clock = clock
        self._due: dict[str, float] = {"renew": 0.0, "pending": 0.0, "sweep": clock() + _SWEEP_FIRST_S}
        self._orphans_at = 0.0
        self._refused: set[str] = set()
        self._own_keys = False

    @property
    def next_at(self) -> float:
        """When the next chore is due, by the clock."""
        return min(self._due.values())

    def released(self) -> None:
        """A version more: others may be too many now."""
        if self._section.keep is not None:
            self._due["sweep"] = self._clock()

    async def run(self) -> bool:
        """Do what is due; True if something was. Raises as `open_model`, from renewing alone: everything waits then.

        What keeps retention or a waiting promotion from its end keeps no checkpoint from being published.
        """
        due = [name for name, at in self._due.items() if at <= self._clock()]
        for name in due:
            chore, every_s = {
                "renew": (self._renew, CHECK_EVERY_S),
                "pending": (self._commit_pending, self._section.rescan),
                "sweep": (self._sweep, SWEEP_EVERY_S),
            }[name]
            try:
                await chore()
            except LostRace:
                every_s = min(every_s, _AGAIN_S)
            except SyncdError as error:
                if name == "renew":
                    raise
                every_s = max(every_s, _AFTER_ERROR_S)
                log.warning("%s: %s: %s", self._section.model, name, error.what)
            self._due[name] = self._clock() + every_s
        return bool(due)

    async def _renew(self) -> None:
        """Twice in the life of what is signed: sign it again, so that it never expires under a running publisher."""
        repository = await self._open()
        renewed = await renew_if_due(repository)
        state = await repository.state()
        online = set(state.keys["timestamp"])
        self._own_keys = any(
            not online & set(state.keys[names.channel_role(channel)]) for channel in state.channels
        )
        if renewed:
            log.info("%s: renewed %s", self._section.model, ", ".join(renewed))

    async def _commit_pending(self) -> None:
        """Only where a channel has a key of its own can something wait."""
        if not self._own_keys:
            return
        repository = await self._open()
        there = {names.pending(*each) for each in await waiting(repository)}
        self._refused &= there
        if there <= self._refused:
            return
        done = await commit_pending(repository)
        for release in done.releases:
            reason = f"version {release.version} is release {release.release} of {release.channel}"
            await self._say("promoted", reason, version=release.version, channel=release.channel)
        for name, why in done.refused:
            if name not in self._refused:
                await self._say("pending-refused", f"{name}: {why}")
        self._refused |= {name for name, _ in done.refused}

    async def _sweep(self) -> None:
        orphans = self._orphans_at <= self._clock()
        swept = await sweep(
            await self._open(), self._section.keep, documents=self._documents, orphans=orphans
        )
        if orphans:
            self._orphans_at = self._clock() + ORPHANS_EVERY_S
        for version in swept.retired:
            await self._say("retired", f"version {version} is not kept any more", version=version)
        if swept.objects:
            log.info("%s: deleted %d objects, %d bytes", self._section.model, swept.objects, swept.bytes)

    async def _say(self, kind: str, reason: str, **more: Any) -> None:
        level = logging.WARNING if kind == "pending-refused" else logging.INFO
        log.log(level, "%s: %s: %s", self._section.model, kind, reason)
        await asyncio.to_thread(events.record, self._db, kind, self._section.model, reason=reason, **more)
