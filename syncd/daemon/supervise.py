"""Tasks that are started again when they fail: each has its own edge, so that no failure reaches another."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final

from syncd.errors import InternalError, SyncdError

log = logging.getLogger("syncd.daemon")

FIRST_WAIT_S: Final = 1.0
LONGEST_WAIT_S: Final = 60.0
HEALTHY_AFTER_S: Final = 120.0
"""A task that ran for so long begins with the shortest wait again."""
HEALED_AFTER: Final = 3
"""A task that runs for so many first waits no longer counts as failing."""


class Supervisor:
    """Named tasks; a failing one is logged and started again after a growing wait with jitter."""

    def __init__(self, *, first_wait_s: float = FIRST_WAIT_S) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._first_wait_s = first_wait_s
        self.failures: dict[str, str] = {}

    def start(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Run `work()` until it returns or is stopped; `name` is not running yet."""
        self._tasks[name] = asyncio.create_task(self._keep(name, work), name=name)

    async def stop(self, name: str, *, within_s: float = 10.0) -> None:
        """Cancel one task and wait for its end; one that does not end in time is left behind, and said."""
        task = self._tasks.pop(name, None)
        self.failures.pop(name, None)
        if task is None:
            return
        task.cancel()
        _, pending = await asyncio.wait({task}, timeout=within_s)
        if pending:
            log.error("did not end in time and is left behind", extra={"task": name, "within_s": within_s})

    async def stop_all(self, *, within_s: float) -> None:
        """Cancel everything and wait for the end of all."""
        await asyncio.gather(*(self.stop(name, within_s=within_s) for name in list(self._tasks)))

    async def _keep(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        wait_s = self._first_wait_s
        while True:
            began = time.monotonic()
            healed = asyncio.get_running_loop().call_later(
                HEALED_AFTER * self._first_wait_s, self.failures.pop, name, None
            )
            try:
                await work()
            except Exception as error:  # noqa: BLE001 - the edge of a task: whatever it was, the others go on
                self._note(name, _first(error))
            else:
                self.failures.pop(name, None)
                return
            finally:
                healed.cancel()
            if time.monotonic() - began > HEALTHY_AFTER_S:
                wait_s = self._first_wait_s
            pause = wait_s * random.uniform(0.75, 1.25)
            log.warning("starts again", extra={"task": name, "in_s": round(pause, 1)})
            await asyncio.sleep(pause)
            wait_s = min(wait_s * 2, LONGEST_WAIT_S)

    def _note(self, name: str, error: BaseException) -> None:
        if isinstance(error, SyncdError):
            self.failures[name] = error.code
            log.error("failed", extra={"task": name}, exc_info=error)
        else:
            self.failures[name] = InternalError.code
            log.critical("failed for a reason that nobody foresaw", extra={"task": name}, exc_info=error)


def _first(error: BaseException) -> BaseException:
    """The failure inside a task group's; of several the first."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
