"""The edge's state machine as one table: code, crash tests and the diagram in STATES.md derive from it.

A transition is carried out in three steps: its intention is written to state.db, its action runs, the new state is
written. Killed anywhere in between, the next start runs the action again: every action is idempotent.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class State(StrEnum):
    """Where one followed model stands; what each means: `state_doc`."""

    IDLE = "IDLE"
    WAITING = "WAITING"
    FETCHING = "FETCHING"
    INSTALLED = "INSTALLED"
    GATING = "GATING"
    PROBATION = "PROBATION"


class Event(StrEnum):
    """What has happened."""

    RELEASED = "RELEASED"
    """The channel names a version that is wanted and is not the one aimed at."""
    WITHDRAWN = "WITHDRAWN"
    """The version aimed at, or the one that serves, is no longer to be had: yanked, or the channel went back."""
    POSTPONED = "POSTPONED"
    """A release is wanted, but not now: this node is held, or nobody has approved it yet."""
    DUE = "DUE"
    """The reason for waiting is gone."""
    TURNED_BACK = "TURNED_BACK"
    """A person wants to leave the version that serves for the one before it."""
    VERIFIED = "VERIFIED"
    """Every segment is on disk and has its signed digest."""
    EXHAUSTED = "EXHAUSTED"
    """This attempt is over without the version: store, disk or bytes were not as they should be."""
    READY = "READY"
    """The daemon's own checks passed."""
    UNSERVABLE = "UNSERVABLE"
    """The version has no model view: there is nothing to vote on."""
    UNFIT = "UNFIT"
    """The daemon's own checks refused."""
    PASSED = "PASSED"
    """Every voter accepted, or there is none."""
    UNANSWERED = "UNANSWERED"
    """A voter died or did not answer in time, and may be asked again."""
    REFUSED = "REFUSED"
    """A voter refused, or was asked too often in vain."""
    SURVIVED = "SURVIVED"
    """Probation is over."""
    DEGRADED = "DEGRADED"
    """In probation: errors, outputs that are not finite, or a `failed` vote."""


class Action(StrEnum):
    """What a transition does; the code is `follow.Follow.ACTIONS`."""

    TAKE_AIM = "take_aim"
    LET_GO = "let_go"
    BACK_OFF = "back_off"
    POSTPONE = "postpone"
    INSTALL = "install"
    OFFER = "offer"
    ACTIVATE = "activate"
    QUARANTINE = "quarantine"
    GO_BACK = "go_back"
    ROLL_BACK = "roll_back"
    TURN_BACK = "turn_back"
    RETIRE = "retire"


_S, _E, _A = State, Event, Action

TRANSITIONS: Final[dict[tuple[State, Event], tuple[State, Action]]] = {
    # in state        on event         go to          having done
    (_S.IDLE, _E.RELEASED): (_S.FETCHING, _A.TAKE_AIM),
    (_S.IDLE, _E.POSTPONED): (_S.WAITING, _A.POSTPONE),
    (_S.IDLE, _E.WITHDRAWN): (_S.IDLE, _A.GO_BACK),
    (_S.IDLE, _E.TURNED_BACK): (_S.IDLE, _A.TURN_BACK),
    (_S.WAITING, _E.RELEASED): (_S.FETCHING, _A.TAKE_AIM),
    (_S.WAITING, _E.POSTPONED): (_S.WAITING, _A.POSTPONE),
    (_S.WAITING, _E.DUE): (_S.FETCHING, _A.TAKE_AIM),
    (_S.WAITING, _E.WITHDRAWN): (_S.IDLE, _A.LET_GO),
    (_S.WAITING, _E.TURNED_BACK): (_S.IDLE, _A.TURN_BACK),
    (_S.FETCHING, _E.RELEASED): (_S.FETCHING, _A.TAKE_AIM),
    (_S.FETCHING, _E.POSTPONED): (_S.WAITING, _A.POSTPONE),
    (_S.FETCHING, _E.WITHDRAWN): (_S.IDLE, _A.LET_GO),
    (_S.FETCHING, _E.TURNED_BACK): (_S.IDLE, _A.TURN_BACK),
    (_S.FETCHING, _E.EXHAUSTED): (_S.WAITING, _A.BACK_OFF),
    (_S.FETCHING, _E.VERIFIED): (_S.INSTALLED, _A.INSTALL),
    (_S.INSTALLED, _E.READY): (_S.GATING, _A.OFFER),
    (_S.INSTALLED, _E.UNFIT): (_S.IDLE, _A.QUARANTINE),
    (_S.INSTALLED, _E.UNSERVABLE): (_S.IDLE, _A.ACTIVATE),
    (_S.INSTALLED, _E.TURNED_BACK): (_S.IDLE, _A.TURN_BACK),
    (_S.GATING, _E.PASSED): (_S.PROBATION, _A.ACTIVATE),
    (_S.GATING, _E.UNANSWERED): (_S.GATING, _A.OFFER),
    (_S.GATING, _E.REFUSED): (_S.IDLE, _A.QUARANTINE),
    (_S.GATING, _E.POSTPONED): (_S.WAITING, _A.POSTPONE),
    (_S.GATING, _E.WITHDRAWN): (_S.IDLE, _A.LET_GO),
    (_S.GATING, _E.TURNED_BACK): (_S.IDLE, _A.TURN_BACK),
    (_S.PROBATION, _E.SURVIVED): (_S.IDLE, _A.RETIRE),
    (_S.PROBATION, _E.DEGRADED): (_S.IDLE, _A.ROLL_BACK),
    (_S.PROBATION, _E.WITHDRAWN): (_S.IDLE, _A.GO_BACK),
    (_S.PROBATION, _E.TURNED_BACK): (_S.IDLE, _A.TURN_BACK),
}

# Kept by the channel's own facts and people's wishes, looked at again in the next state: nothing is lost by waiting.
DEFERRED: Final[frozenset[tuple[State, Event]]] = frozenset(
    {
        (_S.INSTALLED, _E.RELEASED),
        (_S.INSTALLED, _E.POSTPONED),
        (_S.INSTALLED, _E.WITHDRAWN),
        (_S.GATING, _E.RELEASED),
        (_S.PROBATION, _E.RELEASED),
        (_S.PROBATION, _E.POSTPONED),
    }
)

_IN_FETCHING: Final = {_E.VERIFIED, _E.EXHAUSTED}
_IN_INSTALLED: Final = {_E.READY, _E.UNFIT, _E.UNSERVABLE}
_IN_GATING: Final = {_E.PASSED, _E.UNANSWERED, _E.REFUSED}
_IN_PROBATION: Final = {_E.SURVIVED, _E.DEGRADED}

# The code that works in one state is the only source of these events: elsewhere each would be a bug.
NEVER: Final[dict[State, frozenset[Event]]] = {
    _S.IDLE: frozenset({_E.DUE} | _IN_FETCHING | _IN_INSTALLED | _IN_GATING | _IN_PROBATION),
    _S.WAITING: frozenset(_IN_FETCHING | _IN_INSTALLED | _IN_GATING | _IN_PROBATION),
    _S.FETCHING: frozenset({_E.DUE} | _IN_INSTALLED | _IN_GATING | _IN_PROBATION),
    _S.INSTALLED: frozenset({_E.DUE} | _IN_FETCHING | _IN_GATING | _IN_PROBATION),
    _S.GATING: frozenset({_E.DUE} | _IN_FETCHING | _IN_INSTALLED | _IN_PROBATION),
    _S.PROBATION: frozenset({_E.DUE} | _IN_FETCHING | _IN_INSTALLED | _IN_GATING),
}

AFTER_RESTART: Final[dict[State, State]] = {
    _S.IDLE: _S.IDLE,
    _S.WAITING: _S.WAITING,  # and looked at again at once: the reason may be gone
    _S.FETCHING: _S.FETCHING,  # goes on from the journal
    _S.INSTALLED: _S.INSTALLED,
    _S.GATING: _S.GATING,  # asked anew, the attempt counts
    _S.PROBATION: _S.PROBATION,  # for what is left of it
}

# Starts of the daemon in one state with one version: one that keeps killing its machine is given up.
MAX_STARTS: Final[dict[State, int]] = {_S.GATING: 3, _S.PROBATION: 3}
TOO_MANY_STARTS: Final[dict[State, Event]] = {_S.GATING: _E.REFUSED, _S.PROBATION: _E.DEGRADED}
MAX_ATTEMPTS: Final = 3  # how often a voter is asked about one version
MAX_REPLANS: Final = (
    1  # half-way downloads given up for a newer release: releases faster than the link starve nobody
)

BEFORE, WITHIN, AFTER = "before", "within", "after"


def crash_point(when: str, action: Action) -> str:
    """The name of the point before, within or after an action, as `syncd.crashpoint` knows it."""
    return f"edge.{when}.{action}"


CRASH_POINTS: Final = tuple(
    crash_point(when, action) for action in Action for when in (BEFORE, WITHIN, AFTER)
)


def diagram() -> str:
    """The table drawn as a mermaid state diagram: the text of STATES.md."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.IDLE}"]
    lines += [f"    {a} --> {b} : {event} / {action}" for (a, event), (b, action) in TRANSITIONS.items()]
    rows = "\n".join(f"| {state} | {state_doc(state)} |" for state in State)
    later = ", ".join(sorted(f"{event} in {state}" for state, event in DEFERRED))
    return (
        "# The edge's states\n\n"
        "Generated from `transitions.py` (`python -m syncd.edge.transitions > syncd/edge/STATES.md`); a test keeps it"
        " equal.\n\n"
        f"```mermaid\n{chr(10).join(lines)}\n```\n\n"
        f"| state | meaning |\n|---|---|\n{rows}\n\n"
        f"Looked at again in the next state: {later}. Every other pair never happens; if one does, it is said loudly,"
        " the state is kept and what serves goes on serving.\n"
    )


def state_doc(state: State) -> str:
    """One sentence on a state."""
    return {
        State.IDLE: "What serves is what is wanted, or nothing better is known.",
        State.WAITING: "A release is known and wanted, but not now; the reason is kept.",
        State.FETCHING: "Segments of the wanted version are brought to `incoming/`.",
        State.INSTALLED: "The version lies whole under `versions/` and is not offered yet.",
        State.GATING: "`next` points at it; the voters are asked.",
        State.PROBATION: "`current` points at it; it goes back by itself if it fails.",
    }[state]


if __name__ == "__main__":
    import sys

    sys.stdout.write(diagram())
