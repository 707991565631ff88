"""The clock of polls: cron's weekdays by name, jitter, and a guard against a wall clock that steps."""

import asyncio
import time
from datetime import datetime

import pytest

from syncd.edge.poll import PollClock, back_off_s, cron_trigger, weekday_names
from syncd.errors import ConfigInvalid


@pytest.mark.parametrize(
    ("field", "names"),
    [
        ("*", "*"),
        ("0", "sun"),
        ("7", "sun"),
        ("sun", "sun"),
        ("SAT", "sat"),
        ("1-5", "mon,tue,wed,thu,fri"),
        ("5-7", "sun,fri,sat"),
        ("*/2", "sun,tue,thu,sat"),
        ("1-5/2", "mon,wed,fri"),
        ("4/2", "thu,sat"),
        ("0,3", "sun,wed"),
    ],
)
def test_weekdays_mean_what_cron_means(field, names):
    assert weekday_names(field) == names


def test_a_sunday_line_fires_on_sundays():
    trigger = cron_trigger("0 2 * * 0")
    after = datetime.now(trigger.timezone)
    due = [after := trigger.get_next_fire_time(after, after) for _ in range(1)]
    assert due[0].strftime("%a %H:%M") == "Sun 02:00"


def test_day_of_month_and_weekday_together_mean_either_as_in_cron():
    trigger = cron_trigger("30 4 13 * fri")
    now = datetime(2026, 11, 10, tzinfo=trigger.triggers[0].timezone)
    first = trigger.get_next_fire_time(None, now)
    second = trigger.get_next_fire_time(first, first.replace(minute=31))
    assert (first.day, second.day) == (13, 20)
    assert first.strftime("%a") == "Fri"


@pytest.mark.parametrize(
    "text", ["", "* * * *", "0 2 * * 8", "0 25 * * *", "0 2 * * 5-1", "0 2 * * */0", "a b c d e"]
)
def test_a_line_that_cron_would_not_take_is_refused_with_its_text(text):
    with pytest.raises(ConfigInvalid) as caught:
        cron_trigger(text)
    assert repr(text) in caught.value.what


async def test_it_ticks_again_and_again_within_the_jitter():
    wake = asyncio.Event()
    times = []
    async with PollClock(1.0).ticking(wake):
        for _ in range(2):
            await asyncio.wait_for(wake.wait(), 5)
            wake.clear()
            times.append(time.monotonic())
    assert 0.7 < times[1] - times[0] < 1.5


async def test_a_wall_clock_that_steps_polls_at_once_and_arms_the_next_run_anew():
    wake = asyncio.Event()
    step = 0.0
    clock = PollClock(3600.0, guard_s=0.01, wall=lambda: time.time() + step)
    async with clock.ticking(wake):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(wake.wait(), 0.1)
        step = -10 * 365 * 86400.0
        await asyncio.wait_for(wake.wait(), 5)
        wake.clear()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(wake.wait(), 0.1)


def test_pauses_double_up_to_the_cap_with_jitter_either_way():
    assert all(0.5 <= back_off_s(1) <= 1.5 for _ in range(50))
    assert all(2.0 <= back_off_s(3) <= 6.0 for _ in range(50))
    assert all(450.0 <= back_off_s(10_000) <= 1350.0 for _ in range(50))
