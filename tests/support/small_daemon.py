"""As much of a daemon as predictors can see: it offers a version, counts votes, moves the links."""

from __future__ import annotations

import time
from collections.abc import Callable

from syncd.node.followers import FollowerReport, Tally, count_votes, read_followers
from syncd.node.links import ModelFolder


def wait_until(condition: Callable[[], bool], what: str, within_s: float = 30.0) -> None:
    """Wait for `condition`, looking every 5 ms; AssertionError after `within_s`."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.005)


def offer_and_wait(
    folder: ModelFolder, version: int, *, voters: int, attempt: int = 1, within_s: float = 30.0
) -> Tally:
    """Offer `version` and wait until `voters` voters have answered."""
    folder.offer(version, attempt=attempt, gate_within_s=within_s)

    def all_answered() -> bool:
        tally = count_votes(read_followers(folder), version, attempt)
        return len(tally.accepted) + len(tally.refused) >= voters and not tally.waiting

    wait_until(all_answered, f"{voters} votes on version {version}", within_s)
    return count_votes(read_followers(folder), version, attempt)


def activate(folder: ModelFolder, version: int) -> float:
    """Make `version` serve; returns the CLOCK_MONOTONIC time just before `current` moved."""
    serving = folder.read_link("current")
    if serving is not None:
        folder.set_link("previous", serving)
    began = time.monotonic()
    folder.set_link("current", version)
    folder.set_link("next", None)
    return began


def living(folder: ModelFolder) -> list[FollowerReport]:
    """The followers that live."""
    return [report for report in read_followers(folder) if report.alive]


def wait_for_version(folder: ModelFolder, version: int, *, followers: int) -> None:
    """Wait until `followers` followers report that they serve `version`."""
    wait_until(
        lambda: [report.version for report in living(folder)].count(version) >= followers,
        f"{followers} followers on version {version}",
    )
