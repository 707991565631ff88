"""Which checkpoint is next: what was found, what is done, what is put aside, what must wait and until when.

Nothing here reads a file or waits; a look at the folder goes in, a candidate comes out.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from syncd.errors import (
    ArchitectureRefused,
    CheckpointChanged,
    CheckpointHostile,
    CheckpointIncomplete,
    CheckpointUnreadable,
    CheckpointUnsupported,
    CheckpointVanished,
    ModelAmbiguous,
    SyncdError,
)

FIRST_WAIT_S: Final = 1.0
LONGEST_WAIT_S: Final = 300.0
MAX_TOLD: Final = 100

PUT_ASIDE: Final = (
    CheckpointHostile,
    CheckpointUnsupported,
    CheckpointUnreadable,
    ModelAmbiguous,
    ArchitectureRefused,
)
"""What is wrong with the checkpoint itself: told once, not tried again until the file is another one."""
LOOK_AGAIN: Final = (CheckpointVanished, CheckpointChanged)
"""What training does to its files all the time; no error."""


@dataclass(frozen=True)
class Candidate:
    """A checkpoint that was found. identity: tells this content of the file from another; modified: Unix time."""

    path: Path
    identity: str
    modified: float
    settled: bool


@dataclass
class Wait:
    """How often something failed, when it may be tried again (monotonic seconds), and what to tell meanwhile."""

    failures: int = 0
    why: str = ""
    until: float = 0.0

    def longer(self, now: float) -> None:
        """One failure more: wait twice as long, at most `LONGEST_WAIT_S`, with jitter."""
        self.failures += 1
        wait_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(self.failures - 1, 16))
        self.until = now + wait_s * random.uniform(0.5, 1.0)


@dataclass
class Queue:
    """The candidates of one folder, oldest first.

    seen: how many different checkpoints were found so far. ignored: path → why it is not published.
    """

    seen: int = 0
    ignored: dict[str, str] = field(default_factory=dict)
    _found: list[Candidate] = field(default_factory=list)
    _known: set[str] = field(default_factory=set)
    _done: set[str] = field(default_factory=set)
    _aside: dict[str, str] = field(default_factory=dict)
    _waits: dict[str, Wait] = field(default_factory=dict)

    def update(self, found: Iterable[Candidate], done: Iterable[str]) -> None:
        """Take what a look found. `done`: identities that need nothing more; links to one file count once."""
        self._done = set(done)
        unique: dict[str, Candidate] = {}
        for each in sorted(found, key=lambda each: (each.modified, str(each.path))):
            unique.setdefault(each.identity, each)
        self._found = list(unique.values())
        self.seen += len(unique.keys() - self._known)
        self._known = set(unique)
        self._aside = {identity: why for identity, why in self._aside.items() if identity in unique}
        self._waits = {identity: wait for identity, wait in self._waits.items() if identity in unique}
        self._tell()

    @property
    def pending(self) -> list[Candidate]:
        """What was found and is neither done nor put aside, oldest first."""
        return [
            each
            for each in self._found
            if each.identity not in self._done and each.identity not in self._aside
        ]

    def next(self, now: float, *, hurry: bool = False) -> Candidate | None:
        """The oldest candidate that is settled and need not wait; `hurry` takes what is not settled too."""
        for each in self.pending:
            wait = self._waits.get(each.identity)
            if (each.settled or hurry) and (wait is None or wait.until <= now):
                return each
        return None

    def next_at(self) -> float:
        """When the first candidate that waits may be tried (monotonic); infinity if none waits."""
        pending = {each.identity for each in self.pending}
        return min(
            (wait.until for identity, wait in self._waits.items() if identity in pending),
            default=float("inf"),
        )

    def finish(self, candidate: Candidate) -> None:
        """It is published."""
        self._done.add(candidate.identity)
        self._waits.pop(candidate.identity, None)

    def fail(self, candidate: Candidate, error: SyncdError, now: float) -> bool:
        """Put aside or let wait, as the error asks for; True if it is told for the first time."""
        if isinstance(error, LOOK_AGAIN):
            self._wait(candidate, now)
            return False
        if isinstance(error, PUT_ASIDE):
            self._aside[candidate.identity] = _why(error)
            self._tell()
            return True
        new = candidate.identity not in self._waits
        self._wait(
            candidate, now, f"not yet: {_why(error)}" if isinstance(error, CheckpointIncomplete) else ""
        )
        self._tell()
        return new

    def told(self) -> list[dict[str, Any]]:
        """`ignored` as the status endpoint has it."""
        return [{"path": path, "why": why} for path, why in self.ignored.items()]

    def _wait(self, candidate: Candidate, now: float, why: str = "") -> None:
        wait = self._waits.setdefault(candidate.identity, Wait())
        wait.longer(now)
        wait.why = why

    def _tell(self) -> None:
        whys = {**{identity: wait.why for identity, wait in self._waits.items() if wait.why}, **self._aside}
        told = {str(each.path): whys[each.identity] for each in self._found if each.identity in whys}
        self.ignored = dict(list(told.items())[-MAX_TOLD:])


def _why(error: SyncdError) -> str:
    return f"{error.code}: {error.what}"
