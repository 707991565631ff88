"""Looking at a training directory again and again: events make a look come soon, a rescan makes it come for certain."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from syncd.checkpoint.candidates import Candidate, find_candidates
from syncd.checkpoint.settle import Settler

if TYPE_CHECKING:
    from watchdog.events import FileSystemEvent

log = logging.getLogger(__name__)

_GATHER_S: Final = 0.05  # events come in bursts: one look for all of them
_LEAST_BETWEEN_S: Final = 0.5  # a log that is written all the time in the same folder shall not keep us busy
_LEAST_WAIT_S: Final = 0.02
_JOIN_S: Final = 5.0
_READERS: Final = frozenset({"opened", "closed_no_write"})  # our own reading causes these


class Watcher:
    """Candidates of one folder, look by look; an async context manager. Its threads end with it.

    The folder may be missing, be deleted and come back: watchdog would then stay silent for ever, so every look
    compares the folder's inode with the one that is watched. Where nothing sends events (NFS, too few inotify
    watches) the rescan alone does the work; `events` says which it is.
    """

    def __init__(
        self,
        folder: Path,
        include: Sequence[str],
        exclude: Sequence[str] = (),
        *,
        rescan_s: float = 10.0,
        settle_s: float = 2.0,
    ) -> None:
        self.folder = folder
        self.events = False
        self._include, self._exclude = tuple(include), tuple(exclude)
        self._rescan_s = rescan_s
        self._settler = Settler(settle_s)
        self._stirred = asyncio.Event()
        self._stirred.set()
        self._observer: Any = None
        self._armed: tuple[int, int] | None = None
        self._due = 0.0
        self._looked_at = -_LEAST_BETWEEN_S  # monotonic seconds

    async def __aenter__(self) -> Watcher:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def next_look(self, timeout_s: float | None = None) -> list[Candidate]:
        """The candidates, oldest first, as soon as there is reason to look; the first call looks at once.

        Waits for an event, for the rescan, for the time at which something is settled, or for `timeout_s`.
        Settled is what `Settler` calls so; every candidate that is there is given, settled or not.
        """
        wait_s = min(self._rescan_s, self._due)
        if timeout_s is not None:
            wait_s = min(wait_s, timeout_s)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stirred.wait(), wait_s)
            if self._observer is not None:
                pause_s = max(_GATHER_S, self._looked_at + _LEAST_BETWEEN_S - time.monotonic())
                await asyncio.sleep(min(pause_s, wait_s))
        await asyncio.to_thread(self._arm, asyncio.get_running_loop())
        self._stirred.clear()
        self._looked_at = time.monotonic()
        found = await asyncio.to_thread(find_candidates, self.folder, self._include, self._exclude)
        return self._settle(found)

    def stir(self) -> None:
        """Somebody asks for a look: the one that waits comes at once."""
        self._looked_at = -_LEAST_BETWEEN_S
        self._stirred.set()

    async def aclose(self) -> None:
        """Stop watching and wait for the threads to end."""
        await asyncio.to_thread(self._disarm)

    def _settle(self, found: list[Candidate]) -> list[Candidate]:
        now, wall = time.monotonic(), time.time()
        self._settler.forget_others({each.path for each in found})
        settled, self._due = [], self._rescan_s
        for each in found:
            wait_s = self._settler.wait_s(
                each.path, each.identity, now=now, wall=wall, proven=not each.is_folder, sparse=each.sparse
            )
            if wait_s:
                self._due = min(self._due, max(wait_s, _LEAST_WAIT_S))
            settled.append(replace(each, settled=not wait_s))
        return settled

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        """Watch the folder that is there now, if it is another one than before."""
        try:
            found = os.stat(self.folder)
            there = (found.st_dev, found.st_ino)
        except OSError:
            there = None
        if there == self._armed and (there is None or self._observer is None or self._observer.is_alive()):
            return
        self._disarm()
        self._armed = there
        if there is not None:
            self._start(loop)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        from watchdog.observers import Observer

        observer = Observer()
        recursive = any("/" in pattern for pattern in self._include)
        try:
            handler: Any = _Handler(loop, self._stirred)
            observer.schedule(handler, str(self.folder), recursive=recursive)
            observer.start()
        except OSError as error:
            # Too few inotify watches, or the folder went away again: the rescan goes on without events.
            log.warning("no events for %s: %s; it is listed every %g s", self.folder, error, self._rescan_s)
            _end(observer)
            return
        self._observer, self.events = observer, True

    def _disarm(self) -> None:
        observer, self._observer, self._armed, self.events = self._observer, None, None, False
        if observer is not None:
            _end(observer)


def _end(observer: Any) -> None:
    with contextlib.suppress(RuntimeError):  # never started
        observer.stop()
        observer.join(_JOIN_S)


class _Handler:
    """Turns any event into a look; watchdog calls `dispatch` in a thread of its own."""

    def __init__(self, loop: asyncio.AbstractEventLoop, stirred: asyncio.Event) -> None:
        self._loop = loop
        self._stirred = stirred

    def dispatch(self, event: FileSystemEvent) -> None:
        """Ask for a look soon, whatever happened."""
        if event.event_type not in _READERS:
            with contextlib.suppress(RuntimeError):  # the loop is closing
                self._loop.call_soon_threadsafe(self._stirred.set)
