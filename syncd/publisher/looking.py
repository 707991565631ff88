"""Looks at the watched folder, one after the other: what lies there, what is settled, and when to look again."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Self

from syncd.checkpoint.identity import Identity
from syncd.checkpoint.read import open_checkpoint
from syncd.checkpoint.watch import Watcher
from syncd.config import PublishSection
from syncd.errors import SyncdError
from syncd.publisher.queue import Candidate


def identity_text(identity: Identity) -> str:
    """What tells one content of one file from another without reading it, as it is remembered over restarts."""
    return "-".join(map(str, (*identity.content, identity.ctime_ns)))


class Looker:
    """The watcher of one section; an async context manager, no thread is left when it ends."""

    def __init__(self, section: PublishSection) -> None:
        self._watcher = Watcher(
            section.watch, section.include, section.exclude, rescan_s=section.rescan, settle_s=section.settle
        )
        self._found: list[Candidate] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._watcher.aclose()

    async def look(self) -> list[Candidate]:
        """What lies in the folder now, or did when `wait` returned a moment ago."""
        found, self._found = self._found, None
        return await self._look(0.0) if found is None else found

    async def wait(self, wake: asyncio.Event, seconds: float) -> bool:
        """Return when something happened or may have settled, after `seconds`, or, with True, when `wake` is set."""
        looking = asyncio.create_task(self._look(seconds))
        waking = asyncio.create_task(wake.wait())
        try:
            await asyncio.wait({looking, waking}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waking.cancel()
            self._watcher.stir()
            self._found = await asyncio.shield(looking)
        woken = wake.is_set()
        wake.clear()
        return woken

    async def _look(self, wait_s: float) -> list[Candidate]:
        return [
            Candidate(each.path, identity_text(each.identity), each.modified, each.settled)
            for each in await self._watcher.next_look(wait_s)
        ]


def newest_complete(found: list[Candidate]) -> Candidate | None:
    """The newest candidate that can be read; blocking. A last file that was cut off hides none before it."""
    for each in sorted(found, key=lambda each: each.modified, reverse=True):
        with contextlib.suppress(SyncdError), open_checkpoint(each.path):
            return each
    return None
