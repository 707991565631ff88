"""The SQLite file: opening, migrations, transactions, notes, counters.

Blocking and thread-safe: on an event loop call it through `asyncio.to_thread`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from syncd import durable
from syncd.errors import DiskFull, Failed, NeedsNewerSyncd

# One entry for each format of the file, never changed once released; PRAGMA user_version counts them.
MIGRATIONS: Final[tuple[str, ...]] = (
    """
    CREATE TABLE published (
        model TEXT NOT NULL, identity TEXT NOT NULL, content TEXT, version INTEGER, why TEXT,
        at REAL NOT NULL,
        PRIMARY KEY (model, identity));
    CREATE INDEX published_content ON published (model, content);
    CREATE TABLE installed (
        model TEXT NOT NULL, version INTEGER NOT NULL, head_digest TEXT NOT NULL,
        head_length INTEGER NOT NULL,
        at REAL NOT NULL, PRIMARY KEY (model, version));
    CREATE TABLE quarantine (
        model TEXT NOT NULL, version INTEGER NOT NULL, head_digest TEXT NOT NULL, stage TEXT NOT NULL,
        reason TEXT NOT NULL, at REAL NOT NULL, PRIMARY KEY (model, version, head_digest));
    CREATE TABLE edge (model TEXT PRIMARY KEY, state TEXT NOT NULL, document TEXT NOT NULL);
    CREATE TABLE notes (
        room TEXT NOT NULL, key TEXT NOT NULL, document TEXT NOT NULL, PRIMARY KEY (room, key));
    CREATE TABLE counters (
        name TEXT NOT NULL, labels TEXT NOT NULL, value REAL NOT NULL, PRIMARY KEY (name, labels));
    CREATE TABLE events (
        id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, kind TEXT NOT NULL, model TEXT,
        data TEXT NOT NULL);
    """,
    """
    CREATE TABLE wishes (
        model TEXT PRIMARY KEY, held INTEGER NOT NULL, pinned TEXT, leaving TEXT, at REAL NOT NULL);
    CREATE TABLE approvals (
        model TEXT NOT NULL, version INTEGER NOT NULL, head_digest TEXT NOT NULL, at REAL NOT NULL,
        PRIMARY KEY (model, version, head_digest));
    """,
)


class Database:
    """One open state file; any thread may use it, one transaction at a time.

    Args:
        path: the file, made with mode 0600 (its folder must exist).
    Raises:
        NeedsNewerSyncd: a later syncd wrote the file; it was not touched.
        Failed: the file is not a database or cannot be opened.
        DiskFull: from any change, when the disk has no room; what was there before is still there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._connection = sqlite3.connect(
                path, isolation_level=None, check_same_thread=False, timeout=10.0
            )
            self._migrate()
        except (sqlite3.Error, OSError) as error:
            raise _translated(error, path) from error
        durable.fsync_folder(path.parent)

    def _format(self) -> int:
        return int(self._connection.execute("PRAGMA user_version").fetchone()[0])

    def _migrate(self) -> None:
        found = self._format()
        if found > len(MIGRATIONS):
            self._connection.close()
            raise NeedsNewerSyncd(
                f"the state file has format {found}, this syncd knows {len(MIGRATIONS)}",
                do="start the syncd that wrote it, or a later one; nothing was changed",
                path=self.path,
            )
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        if found == len(MIGRATIONS):
            return
        with self.transaction():
            # Another process may have opened the new file at the same time: ask again under the lock.
            for number in range(self._format(), len(MIGRATIONS)):
                for statement in MIGRATIONS[number].split(";"):
                    self._connection.execute(statement)
                self._connection.execute(f"PRAGMA user_version={number + 1}")

    def close(self) -> None:
        """Close the file; twice is fine."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of the block's changes or, after an exception or a crash, none; a nested block joins."""
        with self._lock:
            if self._connection.in_transaction:
                yield self._connection
                return
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self._connection
                    self._connection.execute("COMMIT")
                except BaseException:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise _translated(error, self.path) from error

    def rows(self, sql: str, arguments: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        with self._lock:
            try:
                return self._connection.execute(sql, arguments).fetchall()
            except sqlite3.Error as error:
                raise _translated(error, self.path) from error

    def note(self, room: str, key: str) -> dict[str, Any] | None:
        """The JSON object that `set_note` kept under (room, key)."""
        found = self.rows("SELECT document FROM notes WHERE room=? AND key=?", (room, key))
        return None if not found else dict(json.loads(found[0][0]))

    def notes(self, room: str) -> dict[str, dict[str, Any]]:
        """All notes of a room by key."""
        found = self.rows("SELECT key, document FROM notes WHERE room=? ORDER BY key", (room,))
        return {str(key): dict(json.loads(document)) for key, document in found}

    def set_note(self, room: str, key: str, document: Mapping[str, Any] | None) -> None:
        """Keep a JSON object under (room, key); None forgets it. For intentions, before the deed."""
        with self.transaction() as change:
            if document is None:
                change.execute("DELETE FROM notes WHERE room=? AND key=?", (room, key))
            else:
                change.execute(
                    "INSERT OR REPLACE INTO notes VALUES (?, ?, ?)", (room, key, json.dumps(document))
                )

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter that outlives restarts."""
        with self.transaction() as change:
            change.execute(
                "INSERT INTO counters VALUES (?, ?, ?)"
                " ON CONFLICT (name, labels) DO UPDATE SET value = value + ?",
                (name, json.dumps(labels, sort_keys=True), amount, amount),
            )

    def counters(self) -> list[tuple[str, dict[str, str], float]]:
        """Every counter: name, labels, value."""
        found = self.rows("SELECT name, labels, value FROM counters ORDER BY name, labels")
        return [(str(name), dict(json.loads(labels)), float(value)) for name, labels, value in found]


def _translated(error: sqlite3.Error | OSError, path: Path) -> Failed:
    full = getattr(error, "sqlite_errorname", "") == "SQLITE_FULL" or getattr(error, "errno", None) == 28
    if full:
        return DiskFull(
            "the state file cannot grow: no room on its disk", do="free some room; nothing is lost", path=path
        )
    return Failed(
        f"the state file cannot be used: {error}",
        do="check its owner and its disk; moved away, only quarantines and history are forgotten",
        path=path,
    )
