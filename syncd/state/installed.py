"""What the edge knows over a restart: installed versions, quarantine, where each machine stands."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from syncd.state.db import Database


@dataclass(frozen=True)
class Installed:
    """A version under `versions/N/` and the signed digest of its head."""

    version: int
    head_digest: str
    head_length: int


@dataclass(frozen=True)
class Quarantined:
    """A version that this node has given up on, at stage install, gate or probation."""

    version: int
    head_digest: str
    stage: str
    reason: str


def note_installed(db: Database, model: str, installed: Installed) -> None:
    """Remember an installed version; a second time is fine."""
    with db.transaction() as change:
        row = (model, installed.version, installed.head_digest, installed.head_length, time.time())
        change.execute("INSERT OR REPLACE INTO installed VALUES (?, ?, ?, ?, ?)", row)


def forget_installed(db: Database, model: str, version: int) -> None:
    """Its folder is about to go."""
    with db.transaction() as change:
        change.execute("DELETE FROM installed WHERE model=? AND version=?", (model, version))


def installed(db: Database, model: str) -> dict[int, Installed]:
    """All installed versions of a model by number."""
    sql = "SELECT version, head_digest, head_length FROM installed WHERE model=? ORDER BY version"
    return {row[0]: Installed(*row) for row in db.rows(sql, (model,))}


def put_in_quarantine(db: Database, model: str, quarantined: Quarantined) -> None:
    """Give up on a version; the first reason stays."""
    with db.transaction() as change:
        row = (
            model,
            quarantined.version,
            quarantined.head_digest,
            quarantined.stage,
            quarantined.reason,
            time.time(),
        )
        change.execute("INSERT OR IGNORE INTO quarantine VALUES (?, ?, ?, ?, ?, ?)", row)


def lift_quarantine(db: Database, model: str, version: int) -> None:
    """A person has approved the version after all."""
    with db.transaction() as change:
        change.execute("DELETE FROM quarantine WHERE model=? AND version=?", (model, version))


def quarantine(db: Database, model: str) -> list[Quarantined]:
    """All that this node has given up on, oldest first."""
    sql = "SELECT version, head_digest, stage, reason FROM quarantine WHERE model=? ORDER BY at"
    return [Quarantined(*row) for row in db.rows(sql, (model,))]


def save_machine(db: Database, model: str, state: str, document: dict[str, Any]) -> None:
    """Where the model's state machine stands, with all that it needs to go on after a restart."""
    with db.transaction() as change:
        change.execute("INSERT OR REPLACE INTO edge VALUES (?, ?, ?)", (model, state, json.dumps(document)))


def load_machine(db: Database, model: str) -> tuple[str, dict[str, Any]] | None:
    """What `save_machine` kept, or None for a model that this node has never followed."""
    found = db.rows("SELECT state, document FROM edge WHERE model=?", (model,))
    return (str(found[0][0]), dict(json.loads(found[0][1]))) if found else None
