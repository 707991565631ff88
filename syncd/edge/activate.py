"""Moving the links: offer (`next`), activate (`current`), go back. Each step may be run again after a kill."""

from __future__ import annotations

from syncd.crashpoint import reached
from syncd.edge.transitions import WITHIN, Action, crash_point
from syncd.node.links import ModelFolder


def offer(folder: ModelFolder, version: int, *, attempt: int, gate_within_s: float) -> None:
    """Ask the voters to gate `version`. Blocks for a few fsyncs."""
    folder.set_link("next", None)
    reached(crash_point(WITHIN, Action.OFFER))
    folder.offer(version, attempt=attempt, gate_within_s=gate_within_s)


def activate(folder: ModelFolder, version: int) -> None:
    """Make `version` serve: `previous` first, so that there is a way back the moment that `current` moves."""
    serving = folder.read_link("current")
    if serving is not None and serving != version:
        folder.set_link("previous", serving)
    reached(crash_point(WITHIN, Action.ACTIVATE))
    folder.activate(version)


def withdraw_offer(folder: ModelFolder) -> None:
    """Ask nobody any more."""
    if folder.read_link("next") is not None:
        folder.set_link("next", None)


def go_back(folder: ModelFolder, failing: int, way_back: int | None, action: Action) -> int | None:
    """Let `way_back` serve in place of `failing`; without one `failing` stays: serving it beats serving nothing.

    Returns: the version that serves now.
    """
    withdraw_offer(folder)
    if folder.read_link("current") == failing and way_back is not None:
        folder.set_link("current", way_back)
    reached(crash_point(WITHIN, action))
    serving = folder.read_link("current")
    if serving is not None and folder.read_link("previous") in (serving, failing):
        folder.set_link("previous", None)
    return serving


def way_back_from(folder: ModelFolder, failing: int, refused: set[int]) -> int | None:
    """The version to go back to: `previous`, else the newest installed one, never one in `refused`."""
    previous = folder.read_link("previous")
    candidates = [previous, *reversed(folder.versions())]
    return next((each for each in candidates if each not in refused | {failing, None}), None)
