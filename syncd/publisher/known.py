"""What the store has already: the segments of every kept version, by digest, out of verified segment tables.

Documents are immutable, so each is fetched once: a folder beside the state file keeps them, named by their digest.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from syncd.artifact import codecs
from syncd.artifact.head import DocumentRef, Head
from syncd.artifact.index import IndexEntry, RetiredEntry
from syncd.artifact.layout import Layout
from syncd.artifact.segment import Row, digest
from syncd.artifact.table import SegmentTable
from syncd.durable import make_folder
from syncd.errors import NotAuthentic, ObjectMissing, Refused
from syncd.publisher.commit import ModelRepository

_AT_ONCE: Final = 8
log = logging.getLogger("syncd.publisher")


class KnownSegments:
    """The rows of a model's kept versions; lives as long as its publisher, so that only new versions are looked at.

    Args:
        folder: keeps fetched documents; made when it is needed, may be lost at any time.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows: dict[int, tuple[str, tuple[Row, ...]]] = {}
        self._heads: dict[int, Head] = {}
        self._counts: dict[str, int] = {}
        self._plain: dict[str, str] = {}

    async def rows(self, repository: ModelRepository) -> dict[str, Row]:
        """Digest → where that segment lies, of all kept versions; of several places that of the newest version.

        A version whose documents are missing, changed or of a later format is passed over: its segments go up again.
        """
        kept = {entry.version: entry for entry in repository.index.versions}
        self._rows = {
            version: found
            for version, found in self._rows.items()
            if version in kept and kept[version].head.digest == found[0]
        }
        gate = asyncio.Semaphore(_AT_ONCE)
        async with asyncio.TaskGroup() as group:
            for version in kept.keys() - self._rows.keys():
                group.create_task(self._load(repository, kept[version], gate))
        await asyncio.to_thread(self._sweep)
        return {row.digest: row for version in sorted(self._rows) for row in self._rows[version][1]}

    def layouts(self) -> dict[str, DocumentRef]:
        """Digest of a plain layout → the document that kept versions have for it; after `rows`."""
        heads = [self._heads[version] for version in sorted(self._heads) if version in self._rows]
        return {self._plain[head.layout.digest]: head.layout for head in heads}

    async def condemned(self, repository: ModelRepository) -> set[str]:
        """The packs of retired versions: they are deleted soon, nothing new may lie in them."""
        found: set[str] = set()
        for entry in repository.index.retired:
            with contextlib.suppress(Refused, ObjectMissing):
                _, rows = await self._table_rows(repository, entry)
                found |= {row.pack for row in rows}
        return found

    async def _load(self, repository: ModelRepository, entry: IndexEntry, gate: asyncio.Semaphore) -> None:
        async with gate:
            try:
                self._heads[entry.version], rows = await self._table_rows(repository, entry)
            except (Refused, ObjectMissing) as error:
                log.warning("version %d is not compared with: %s", entry.version, error.what)
                rows = ()
                self._heads.pop(entry.version, None)
            self._rows[entry.version] = (entry.head.digest, rows)

    async def _table_rows(
        self, repository: ModelRepository, entry: IndexEntry | RetiredEntry
    ) -> tuple[Head, tuple[Row, ...]]:
        trust = repository.trust
        head = Head.parse(
            await self._document(
                entry.head,
                lambda: trust.fetch_version_head(entry.version, entry.head.digest, entry.head.length),
            )
        )
        if head.version != entry.version:
            raise NotAuthentic(f"the head of version {entry.version} says that it is {head.version}")
        if head.layout.digest not in self._counts:
            data = await self._document(head.layout, lambda: self._fetch(repository, "layouts", head.layout))
            layout = await asyncio.to_thread(Layout.parse, data)
            self._counts[head.layout.digest] = len(layout.segments)
            self._plain[head.layout.digest] = digest(await asyncio.to_thread(layout.plain))
        data = await self._document(head.table, lambda: self._fetch(repository, "tables", head.table))
        table = await asyncio.to_thread(SegmentTable.parse, data, self._counts[head.layout.digest])
        return head, tuple(row for row in table.rows if row.codec in codecs.PLAIN and not row.bases)

    async def _fetch(self, repository: ModelRepository, kind: str, reference: DocumentRef) -> bytes:
        named = "layouts" if kind == "layouts" else "tables"
        return await repository.trust.fetch_document(named, reference.digest, reference.length)  # type: ignore[arg-type]

    async def _document(self, reference: DocumentRef, fetch: Callable[[], Awaitable[bytes]]) -> bytes:
        path = self._folder / reference.digest.removeprefix("sha256:")
        kept = await asyncio.to_thread(read_kept, path, reference.digest)
        if kept is not None:
            return kept
        data = await fetch()
        await asyncio.to_thread(keep_document, path, data)
        return data

    def _sweep(self) -> None:
        """Let go of documents that no kept version needed for a long time: the folder is no archive."""
        with contextlib.suppress(OSError):
            entries = sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime)
            for path in entries[: max(0, len(entries) - 3 * len(self._rows) - 16)]:
                path.unlink()


def read_kept(path: Path, expected: str) -> bytes | None:
    """The document at `path` if it has that digest; blocking."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return data if digest(data) == expected else None


def keep_document(path: Path, data: bytes) -> None:
    """Keep a document; not durably, for a torn one is fetched again, and not at any price: a full disk is no error."""
    with contextlib.suppress(OSError):
        make_folder(path.parent, 0o700)
        aside = path.with_name(f".{path.name}-{os.getpid()}")
        aside.write_bytes(data)
        aside.replace(path)
