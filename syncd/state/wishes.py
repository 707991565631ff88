"""What people chose for this node, kept over restarts: held or not, a pinned version, one to leave, approvals."""

from __future__ import annotations

import json
import time
from dataclasses import astuple, dataclass, replace
from typing import Final

from syncd.state.db import Database
from syncd.state.installed import Installed

COMMANDS: Final = ("poll", "rollback", "pin", "unpin", "approve", "hold", "resume")
WITH_VERSION: Final = ("pin", "approve")


@dataclass(frozen=True)
class Wishes:
    """held: no updates. pinned: this version and no other. leaving: go back from this one, not done yet."""

    held: bool = False
    pinned: Installed | None = None
    leaving: Installed | None = None


def load(db: Database, model: str) -> Wishes:
    """What people chose for a model; nothing was chosen: the defaults."""
    found = db.rows("SELECT held, pinned, leaving FROM wishes WHERE model=?", (model,))
    if not found:
        return Wishes()
    held, pinned, leaving = found[0]
    return Wishes(bool(held), _version(pinned), _version(leaving))


def save(db: Database, model: str, wishes: Wishes) -> None:
    """Keep it; durable when this returns."""
    row = (model, int(wishes.held), _text(wishes.pinned), _text(wishes.leaving), time.time())
    with db.transaction() as change:
        change.execute("INSERT OR REPLACE INTO wishes VALUES (?, ?, ?, ?, ?)", row)


def forget_leaving(db: Database, model: str) -> None:
    """The node has gone back."""
    with db.transaction():
        save(db, model, replace(load(db, model), leaving=None))


def approve(db: Database, model: str, version: int, head_digest: str) -> None:
    """A person lets this node install the version; a second time is fine."""
    with db.transaction() as change:
        row = (model, version, head_digest, time.time())
        change.execute("INSERT OR IGNORE INTO approvals VALUES (?, ?, ?, ?)", row)


def is_approved(db: Database, model: str, version: int, head_digest: str) -> bool:
    """Whether somebody approved this very version."""
    sql = "SELECT 1 FROM approvals WHERE model=? AND version=? AND head_digest=?"
    return bool(db.rows(sql, (model, version, head_digest)))


def _text(version: Installed | None) -> str | None:
    return None if version is None else json.dumps(astuple(version))


def _version(text: str | None) -> Installed | None:
    return None if text is None else Installed(*json.loads(text))
