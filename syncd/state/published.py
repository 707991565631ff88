"""What this publisher has looked at, by a file's identity and by content: a restart publishes nothing twice."""

from __future__ import annotations

import time
from dataclasses import dataclass

from syncd.state.db import Database


@dataclass(frozen=True)
class Published:
    """One checkpoint that is done with.

    identity: what tells this file from another without reading it, chosen by the publisher.
    content: digest of its bytes, if they were read. version: None where it was put aside; `why` says why.
    """

    identity: str
    content: str | None = None
    version: int | None = None
    why: str = ""


def remember(db: Database, model: str, done: Published) -> None:
    """Keep it; the same identity again replaces what was known."""
    with db.transaction() as change:
        change.execute(
            "INSERT OR REPLACE INTO published VALUES (?, ?, ?, ?, ?, ?)",
            (model, done.identity, done.content, done.version, done.why, time.time()),
        )


def by_identity(db: Database, model: str, identity: str) -> Published | None:
    """What is known of that very file."""
    sql = "SELECT identity, content, version, why FROM published WHERE model=? AND identity=?"
    found = db.rows(sql, (model, identity))
    return Published(*found[0]) if found else None


def by_content(db: Database, model: str, content: str) -> Published | None:
    """The newest version that has these bytes."""
    sql = (
        "SELECT identity, content, version, why FROM published"
        " WHERE model=? AND content=? AND version IS NOT NULL ORDER BY version DESC LIMIT 1"
    )
    found = db.rows(sql, (model, content))
    return Published(*found[0]) if found else None


def all_of(db: Database, model: str) -> list[Published]:
    """Everything remembered of a model, oldest first."""
    sql = "SELECT identity, content, version, why FROM published WHERE model=? ORDER BY at"
    return [Published(*row) for row in db.rows(sql, (model,))]


def forget(db: Database, model: str, identity: str) -> None:
    """Let go of an identity (its file is gone, say)."""
    with db.transaction() as change:
        change.execute("DELETE FROM published WHERE model=? AND identity=?", (model, identity))
