"""Where one model's state machine stands, as it is kept in state.db: enough to go on after any restart."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from syncd.edge.transitions import Event, State
from syncd.state import installed
from syncd.state.db import Database


@dataclass(frozen=True)
class Target:
    """The version that the machine aims at, by its signed head."""

    version: int
    head_digest: str
    head_length: int


@dataclass(frozen=True)
class Hindrance:
    """Why a wanted version has to wait: a word for programs (`hold`, `approval`), a text for people."""

    kind: str
    text: str


@dataclass(frozen=True)
class Intention:
    """A transition that was begun: its action may have run in part, and is run again."""

    event: Event
    reason: str
    target: Target | None


@dataclass
class Standing:
    """One model's place in the table.

    reason: why it stands here, for people. asked: how often voters were asked about the target. attempt: the number
    of the last offer, which only grows. starts: of the daemon since this state was entered. failures: attempts in a
    row that ended without the version. replans: targets given up half-way since the last install. probation_until:
    Unix seconds. unfit: why the daemon's own checks refuse the target. waits_for: in WAITING, whose word is waited for
    ("hold", "approval"); "" where a failed attempt is repeated after a pause.
    """

    state: State = State.IDLE
    target: Target | None = None
    reason: str = ""
    asked: int = 0
    attempt: int = 0
    starts: int = 0
    failures: int = 0
    replans: int = 0
    probation_until: float = 0.0
    unfit: str = ""
    waits_for: str = ""
    intention: Intention | None = None

    def save(self, db: Database, model: str) -> None:
        """Keep it; durable when this returns."""
        document = dataclasses.asdict(self)
        installed.save_machine(db, model, document.pop("state"), document)


def load_standing(db: Database, model: str) -> Standing:
    """What was saved, or a fresh IDLE. What a later syncd added is ignored, what it lacks has its default."""
    found = installed.load_machine(db, model)
    if found is None:
        return Standing()
    state, document = found
    names = {field.name for field in dataclasses.fields(Standing)}
    fields: dict[str, Any] = {name: value for name, value in document.items() if name in names}
    intention = fields.get("intention")
    fields["target"] = _target(fields.get("target"))
    fields["intention"] = intention and Intention(
        Event(intention["event"]), intention["reason"], _target(intention["target"])
    )
    return Standing(**{**fields, "state": State(state)})


def _target(document: dict[str, Any] | None) -> Target | None:
    return None if document is None else Target(**document)
