"""What this publisher remembers over a restart: files it is done with, packs of an attempt, whether it ever started.

A file is told from another by device, inode, size, modification and change time; a version by its content digest.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Final

from syncd.artifact.segment import Row
from syncd.state import published
from syncd.state.db import Database
from syncd.state.published import Published

ATTEMPT_LIFE_S: Final = 5 * 86400.0
"""Packs under no kept index are deleted after 7 days; two days are left to finish an attempt that counts on them."""


class Memory:
    """One model's memory in the state file; every method blocks and is one transaction."""

    def __init__(self, db: Database, model: str) -> None:
        self._db, self._model = db, model
        self._packs_room = f"publisher-packs/{model}"

    def of(self, identity: str) -> Published | None:
        """What is known of that very file; None: it was never looked at."""
        return published.by_identity(self._db, self._model, identity)

    def version_of(self, content: str) -> int | None:
        """The newest version that this publisher knows to have that content."""
        found = published.by_content(self._db, self._model, content)
        return found.version if found else None

    def remember(self, identity: str, content: str, version: int) -> None:
        """The file is published, and every pack of the attempt is in a version."""
        with self._db.transaction():
            published.remember(self._db, self._model, Published(identity, content, version))
            self.forget_packs()

    def put_aside(self, identities: Iterable[str], why: str) -> None:
        """Never publish these files unless they change."""
        with self._db.transaction():
            for identity in identities:
                published.remember(self._db, self._model, Published(identity, why=why))

    def last_version(self) -> int | None:
        """The highest version that this publisher has released."""
        versions = [
            each.version for each in published.all_of(self._db, self._model) if each.version is not None
        ]
        return max(versions, default=None)

    def first_start(self, watch: Path, existing: Iterable[str], wanted: Iterable[str], why: str) -> bool:
        """On the first start with `watch`: put all `existing` files aside but the `wanted`; False: not the first."""
        with self._db.transaction():
            if self._db.note("publisher-started", f"{self._model} {watch}") is not None:
                return False
            self.put_aside(set(existing) - set(wanted), why)
            self._db.set_note("publisher-started", f"{self._model} {watch}", {"at": time.time()})
            return True

    def keep_pack(self, pack: str, rows: Iterable[Row]) -> None:
        """A pack of an attempt lies in the store; until the version is committed, only this memory says so."""
        document = {"at": time.time(), "rows": [asdict(row) for row in rows]}
        self._db.set_note(self._packs_room, pack, document)

    def packs(self) -> Mapping[str, list[Row]]:
        """The packs of attempts that did not end, by digest; old ones are forgotten, the store may have let them go."""
        found: dict[str, list[Row]] = {}
        with self._db.transaction():
            for pack, document in self._db.notes(self._packs_room).items():
                if document["at"] > time.time() - ATTEMPT_LIFE_S:
                    found[pack] = [_row(fields) for fields in document["rows"]]
                else:
                    self._db.set_note(self._packs_room, pack, None)
        return found

    def forget_packs(self) -> None:
        """The attempt is committed or given up."""
        with self._db.transaction():
            for pack in self._db.notes(self._packs_room):
                self._db.set_note(self._packs_room, pack, None)


def _row(fields: Mapping[str, object]) -> Row:
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    return Row(**values)  # type: ignore[arg-type]
