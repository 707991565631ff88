"""Supervised tasks: a failure stays with its task, and the task starts again."""

from __future__ import annotations

import asyncio
import logging

import pytest

from syncd.daemon.supervise import Supervisor
from syncd.errors import Failed, StoreUnreachable


async def until(event: asyncio.Event) -> None:
    async with asyncio.timeout(10):
        await event.wait()


async def test_a_failing_task_starts_again_and_disturbs_no_other(caplog: pytest.LogCaptureFixture) -> None:
    supervisor, third_start, steady_ran = Supervisor(first_wait_s=0.01), asyncio.Event(), asyncio.Event()
    starts: list[int] = []

    async def failing() -> None:
        starts.append(len(starts))
        if len(starts) == 3:
            third_start.set()
            await asyncio.Event().wait()
        if len(starts) == 1:
            raise StoreUnreachable("no answer")
        raise ZeroDivisionError

    async def steady() -> None:
        steady_ran.set()
        await asyncio.Event().wait()

    supervisor.start("failing", failing)
    supervisor.start("steady", steady)
    await until(steady_ran)
    await until(third_start)
    assert supervisor.failures == {"failing": "internal"}
    levels = [record.levelno for record in caplog.records if record.levelno >= logging.ERROR]
    assert levels == [logging.ERROR, logging.CRITICAL]
    await supervisor.stop_all(within_s=5)
    assert supervisor.failures == {}


async def test_the_failure_inside_a_task_group_is_the_one_that_is_told() -> None:
    supervisor, seen = Supervisor(first_wait_s=30), asyncio.Event()

    async def inner() -> None:
        raise Failed("the disk is gone")

    async def grouped() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(inner())
        finally:
            seen.set()

    supervisor.start("grouped", grouped)
    await until(seen)
    async with asyncio.timeout(10):
        while not supervisor.failures:  # noqa: ASYNC110 - nothing tells when it is noted
            await asyncio.sleep(0)
    assert supervisor.failures == {"grouped": "failed"}
    await supervisor.stop_all(within_s=5)


async def test_a_task_that_ends_is_not_started_again() -> None:
    supervisor, ran, starts = Supervisor(first_wait_s=0.01), asyncio.Event(), []

    async def once() -> None:
        starts.append(1)
        ran.set()

    supervisor.start("once", once)
    await until(ran)
    await supervisor.stop_all(within_s=5)
    assert starts == [1]


async def test_a_task_that_will_not_end_is_left_behind_in_time(caplog: pytest.LogCaptureFixture) -> None:
    supervisor, started, release = Supervisor(), asyncio.Event(), asyncio.Event()

    async def stubborn() -> None:
        started.set()
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    supervisor.start("stubborn", stubborn)
    await until(started)
    await supervisor.stop("stubborn", within_s=0.05)
    assert "left behind" in caplog.text
    release.set()
    await asyncio.sleep(0)
