"""What happened, numbered and kept over restarts: the newest `KEPT` events."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from syncd.state.db import Database

KEPT: Final = 10_000
TYPE: Final = "syncd."
"""With the kind it is a CloudEvent's type."""


@dataclass(frozen=True)
class Event:
    """id: rises by one for each event, never reused. at: Unix seconds. data: a JSON object."""

    id: int
    at: float
    kind: str
    model: str | None
    data: dict[str, Any]


def record(db: Database, kind: str, model: str | None = None, **data: Any) -> int:
    """Add an event and return its id; events older than the newest `KEPT` go."""
    with db.transaction() as change:
        values = (time.time(), kind, model, json.dumps(data, sort_keys=True))
        number = (
            change.execute("INSERT INTO events (at, kind, model, data) VALUES (?, ?, ?, ?)", values).lastrowid
            or 0
        )
        change.execute("DELETE FROM events WHERE id <= ?", (number - KEPT,))
    return number


def source(node: str) -> str:
    """A CloudEvent's source: this node."""
    return f"urn:syncd:node:{quote(node, safe='')}"


def newest(db: Database) -> int:
    """The id of the newest event, 0 before the first."""
    return int(db.rows("SELECT coalesce(max(id), 0) FROM events")[0][0])


def oldest(db: Database) -> int:
    """The id of the oldest event that is kept, 0 if there is none."""
    return int(db.rows("SELECT coalesce(min(id), 0) FROM events")[0][0])


def since(db: Database, last: int, limit: int = 1000) -> list[Event]:
    """The events after id `last`, oldest first, at most `limit`."""
    sql = "SELECT id, at, kind, model, data FROM events WHERE id > ? ORDER BY id LIMIT ?"
    return [
        Event(i, at, kind, model, dict(json.loads(data)))
        for i, at, kind, model, data in db.rows(sql, (last, limit))
    ]
