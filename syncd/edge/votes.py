"""Asking the voters about `next`, and watching `current` in probation: what followers say becomes an event."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from syncd.edge.transitions import MAX_ATTEMPTS, Event
from syncd.node.followers import count_votes, failed_votes, read_dead, read_followers
from syncd.node.links import ModelFolder

LOOK_S: Final = 0.05


async def ask_voters(
    folder: ModelFolder,
    version: int,
    *,
    attempt: int,
    asked: int,
    within_s: float,
    culprit: str = "",
    dead_before: frozenset[str] = frozenset(),
) -> tuple[Event, str]:
    """Wait for the votes on `version` as offered the `attempt`-th time.

    Args:
        asked: how often this version was asked about, this time included.
        culprit: who died or kept silent before; it is waited for, so that a process that dies of a version cannot
            let it pass by being dead.
        dead_before: followers that were dead when the offer was made.
    Returns: PASSED, REFUSED with the reason, or UNANSWERED with the culprit's name.
    """
    deadline = time.monotonic() + within_s
    while True:
        reports = await asyncio.to_thread(read_followers, folder, sweep=False)
        tally = count_votes(reports, version, attempt)
        if tally.refused:
            return Event.REFUSED, _named(*tally.refused[0])
        dead = await asyncio.to_thread(_died, folder, version, attempt, dead_before)
        silent = dead or (tally.waiting[0] if tally.waiting else culprit)
        if tally.all_accepted and not dead and (tally.accepted or not culprit):
            return Event.PASSED, f"{len(tally.accepted)} voters accepted" if tally.accepted else "no voter"
        if dead or time.monotonic() >= deadline:
            how = "died while gating" if dead else f"did not answer within {within_s:g} s"
            if asked >= MAX_ATTEMPTS:
                return Event.REFUSED, f"follower {silent} {how}, {asked} times asked"
            return Event.UNANSWERED, f"follower {silent} {how}"
        await asyncio.sleep(min(LOOK_S, max(0.0, deadline - time.monotonic())))


def _died(folder: ModelFolder, version: int, attempt: int, before: frozenset[str]) -> str:
    """The id of a voter that died without an answer since the offer was made, "" if none did."""
    silent = count_votes(read_dead(folder), version, attempt).waiting
    return next((each for each in silent if each not in before), "")


async def watch_probation(
    folder: ModelFolder, version: int, *, left_s: float, most_errors: int, look_s: float = 0.2
) -> tuple[Event, str]:
    """Watch the voters that serve `version` until probation is over.

    Returns: SURVIVED, or DEGRADED with the reason: a `failed` vote, or `most_errors` failed or non-finite predictions,
    those of processes that have died meanwhile included.
    """
    deadline = time.monotonic() + left_s
    worst: dict[str, int] = {}
    while True:
        reports = await asyncio.to_thread(read_followers, folder)
        failed = failed_votes(reports, version)
        if failed:
            return Event.DEGRADED, _named(*failed[0])
        for report in reports:
            if report.voter and report.version == version:
                worst[report.id] = max(worst.get(report.id, 0), report.errors + report.nonfinite)
        errors = sum(worst.values())
        if errors >= most_errors:
            return Event.DEGRADED, f"{errors} predictions failed or were not finite; {most_errors} roll back"
        left = deadline - time.monotonic()
        if left <= 0:
            return Event.SURVIVED, ""
        await asyncio.sleep(min(look_s, left))


def _named(follower: str, reason: str) -> str:
    return f"follower {follower}: {reason or 'no reason given'}"
