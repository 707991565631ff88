"""When to poll: APScheduler as a clock that does nothing but set an Event of the task that owns the work.

A job's own exception would never reach that task, a stopped loop would skip runs, and a clock that is set back ten
years would put the next run ten years away (all seen): hence the Event, the job's options, and the guard.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, Final

from syncd.errors import ConfigInvalid

if TYPE_CHECKING:
    from apscheduler.triggers.base import BaseTrigger

JITTER: Final = 0.1  # of the interval, either way: a fleet does not poll in step
_DAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_STEP_S: Final = 2.0  # a wall clock that moves this far against the monotonic one was set
_GUARD_S: Final = 30.0


def cron_trigger(text: str) -> BaseTrigger:
    """The trigger of a crontab line in local time; days of the week as cron counts them (0 and 7 are Sunday).

    APScheduler counts 0 as Monday and refuses 7, so days go in by name; day of month and day of week, where both are
    given, mean either, as in cron.
    Raises:
        ConfigInvalid: the line is not five fields that cron would take.
    """
    from apscheduler.triggers.combining import OrTrigger
    from apscheduler.triggers.cron import CronTrigger

    fields = text.split()
    try:
        if len(fields) != 5:
            raise ValueError(f"{len(fields)} fields, 5 are needed")
        minute, hour, day, month, weekday = fields
        common = {"minute": minute, "hour": hour, "month": month}
        by_day, by_weekday = {"day": day}, {"day_of_week": weekday_names(weekday)}
        if day != "*" and weekday != "*":
            return OrTrigger([CronTrigger(**common, **by_day), CronTrigger(**common, **by_weekday)])
        return CronTrigger(**common, **by_day, **by_weekday)
    except ValueError as error:
        raise ConfigInvalid(
            f"cron {text!r}: {error}", do='write five fields, for example "0 2 * * sun": Sundays at 02:00'
        ) from error


def weekday_names(field: str) -> str:
    """Cron's day-of-week field as a list of names, `*` as it is; ValueError for what cron would not take."""
    if field == "*":
        return "*"
    days: set[int] = set()
    for part in field.lower().split(","):
        span, _, step = part.partition("/")
        first, dash, last = span.partition("-")
        low = 0 if span == "*" else _weekday(first)
        high = 6 if span == "*" or (step and not dash) else _weekday(last) if dash else low
        if low > high or (step and (not step.isdecimal() or int(step) == 0)):
            raise ValueError(f"{part!r} is not a span of weekdays")
        days |= {day % 7 for day in range(low, high + 1, int(step or "1"))}
    return ",".join(_DAYS[day] for day in sorted(days))


def _weekday(text: str) -> int:
    if text in _DAYS:
        return _DAYS.index(text)
    if text.isdecimal() and int(text) <= 7:
        return int(text)
    raise ValueError(f"{text!r} is not a weekday")


class PollClock:
    """Sets an Event every `poll_s` seconds (±10 %), or at cron's times.

    Args:
        wall, monotonic: the two clocks that the guard compares; a test may step the first.
    """

    def __init__(
        self,
        poll_s: float,
        cron: str | None = None,
        *,
        guard_s: float = _GUARD_S,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._poll_s = poll_s
        self._cron = cron
        self._guard_s = guard_s
        self._wall = wall
        self._monotonic = monotonic

    def _trigger(self) -> BaseTrigger:
        from apscheduler.triggers.interval import IntervalTrigger

        if self._cron is not None:
            return cron_trigger(self._cron)
        return IntervalTrigger(seconds=self._poll_s, jitter=self._poll_s * JITTER)

    @contextlib.asynccontextmanager
    async def ticking(self, wake: asyncio.Event) -> AsyncIterator[None]:
        """Set `wake` at each due time while the block runs. Raises ConfigInvalid for a bad cron line."""
        make = await asyncio.to_thread(_scheduler_class)  # its import takes 0.1 s

        async def due() -> None:
            wake.set()

        scheduler = make()
        options = {"misfire_grace_time": None, "coalesce": True, "max_instances": 1}
        job = scheduler.add_job(due, self._trigger(), **options)
        scheduler.start()
        guard = asyncio.create_task(self._guard(job, wake), name="poll clock guard")
        try:
            yield
        finally:
            guard.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await guard
            scheduler.shutdown(wait=False)

    async def _guard(self, job: Any, wake: asyncio.Event) -> None:
        """Arm the job anew and poll at once when the wall clock was stepped: its next run may be years away."""
        offset = self._wall() - self._monotonic()
        while True:
            await asyncio.sleep(self._guard_s)
            now = self._wall() - self._monotonic()
            if abs(now - offset) > _STEP_S:
                offset = now
                job.reschedule(self._trigger())
                wake.set()


def _scheduler_class() -> Any:
    from apscheduler.schedulers.asyncio import AsyncIOScheduler

    return AsyncIOScheduler


def back_off_s(failures: int, *, base_s: float = 1.0, cap_s: float = 900.0) -> float:
    """Seconds to wait after `failures` failures in a row: doubling from `base_s`, at most `cap_s`, ±50 % of it."""
    return min(cap_s, base_s * 2.0 ** min(max(failures, 1) - 1, 30)) * random.uniform(0.5, 1.5)
