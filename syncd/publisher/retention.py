"""Retention: versions are retired by a commit, their objects deleted a day later, orphans after seven days.

A pass reads the signed state, then lists the store, then deletes what the state does not need. It is safe beside any
number of publishers because of three rules, and no clock of a day is among them:

- a publisher refers to objects of versions kept in the very state that it commits upon (compare-and-set), or to
  objects that it has put itself less than five days ago; every object that it puts has a name of its own (a random
  copy number), so a name that was deleted never comes back;
- retiring is such a commit too: whoever planned with the retired version loses the race and plans anew;
- what no kept version needs goes only if a version retired a day ago needed it, or if it is older than seven days.

What a channel or a waiting promotion names is never retired, nor is the newest version with training state. Claims
and roots stay for ever: a number is given once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from syncd.artifact.delta import DeltaDocument
from syncd.artifact.head import DocumentRef, Head
from syncd.artifact.index import Index, IndexEntry, RetiredEntry
from syncd.artifact.layout import Layout
from syncd.artifact.table import SegmentTable
from syncd.config import KeepSection
from syncd.crashpoint import reached
from syncd.errors import ObjectMissing
from syncd.publisher.commit import ModelRepository
from syncd.publisher.known import keep_document, read_kept
from syncd.publisher.pending import verified, waiting
from syncd.store.base import ObjectInfo
from syncd.trust import names
from syncd.trust.verify import SignedState

DELETE_AFTER_S: Final = 86400.0
"""From the commit that retires a version to the deletion of its objects: downloads that run may finish."""
ORPHAN_AFTER_S: Final = 7 * 86400.0
"""What nothing refers to may belong to an attempt that runs; none counts on objects older than five days."""
CRASH_POINTS: Final = ("retention.retired", "retention.before_delete", "retention.deleted")
_AT_ONCE: Final = 8
log = logging.getLogger("syncd.publisher")


@dataclass(frozen=True)
class Swept:
    """What a pass did: versions retired now, versions whose objects are gone, objects and bytes deleted."""

    retired: tuple[int, ...] = ()
    gone: tuple[int, ...] = ()
    objects: int = 0
    bytes: int = 0


def wanted_versions(index: Index, keep: KeepSection, named: Iterable[int]) -> set[int]:
    """The versions to keep: the newest, the newest with training state, and those that something names."""
    versions = [each.version for each in index.versions]
    training = [each.version for each in index.versions if each.training_state]
    return {*versions[-keep.versions :], *training[-keep.training_state :], *named} & set(versions)


async def sweep(
    repository: ModelRepository,
    keep: KeepSection | None,
    *,
    clock: Callable[[], float] = time.time,
    documents: Path | None = None,
    orphans: bool = True,
) -> Swept:
    """One pass: retire what is too much, delete what was retired a day ago, delete orphans.

    Args:
        keep: None retires nothing; what was retired and orphans go all the same.
        clock: unix time.
        documents: a folder that keeps documents by digest from pass to pass; may be lost.
        orphans: False looks for none, and lists the store only where a retired version is due.
    Raises:
        LostRace: somebody committed meanwhile; what was deleted is gone rightly, the next pass goes on.
        NotAuthentic, KeyUnusable, StoreErrors: nothing that a version needs was touched.
    """
    state = await repository.load()
    now = clock()
    retired = await _retire(repository, keep, now) if keep is not None else ()
    if retired:
        reached("retention.retired")
        state = await repository.state()
    due = [each for each in repository.index.retired if _retired_at(each) <= now - DELETE_AFTER_S]
    if not due and not orphans:
        return Swept(retired)
    gone = await _not_needed(repository, state, Needs(repository, documents), due, now)
    await _delete(repository, gone)
    if due:
        left = tuple(each for each in repository.index.retired if each not in due)
        await repository.commit_index(replace(repository.index, retired=left), step=reached)
        reached("retention.deleted")
    return Swept(retired, tuple(each.version for each in due), len(gone), sum(each.size for each in gone))


async def _not_needed(
    repository: ModelRepository, state: SignedState, needs: Needs, due: Sequence[RetiredEntry], now: float
) -> list[ObjectInfo]:
    """What may be deleted. The store is listed after the state was read: what is put from now on is not in it."""
    used = await _used(repository, state, needs, due)
    condemned: set[str] = set()
    for entry in due:
        condemned |= await needs.of_retired(entry)
    folder = names.model_folder(repository.model)
    return [
        each
        async for each in repository.store.list(folder)
        if (name := each.key[len(folder) + 1 :]) not in used
        and (name in condemned or _is_orphan(name, each, state, now))
    ]


async def _retire(repository: ModelRepository, keep: KeepSection, now: float) -> tuple[int, ...]:
    """Commit an index without the versions that are too many; they stay whole for a day."""
    named = {facts.version for facts in repository.channels.values() if facts is not None}
    pending, _ = await verified(repository, await waiting(repository))
    named |= {each.facts.version for each in pending.values()}
    index = repository.index
    wanted = wanted_versions(index, keep, named)
    going = [each for each in index.versions if each.version not in wanted]
    if not going:
        return ()
    at = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    retired = [*index.retired, *(RetiredEntry(each.version, each.head, at) for each in going)]
    await repository.commit_index(
        replace(
            index,
            versions=tuple(each for each in index.versions if each.version in wanted),
            retired=tuple(sorted(retired, key=lambda each: each.version)),
        ),
        step=reached,
    )
    return tuple(each.version for each in going)


def _retired_at(entry: RetiredEntry) -> float:
    return datetime.strptime(entry.retired_at, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()


@dataclass
class Needs:
    """Which objects a version is made of, by name below the model's folder."""

    repository: ModelRepository
    documents: Path | None = None
    _counts: dict[str, int] = field(default_factory=dict)

    async def of(self, version: int, head: DocumentRef) -> set[str]:
        """Head, layout, table and packs. Raises ObjectMissing, NotAuthentic: nothing can be said of it."""
        trust = self.repository.trust
        data = await self._kept(head, lambda: trust.fetch_version_head(version, head.digest, head.length))
        parsed = Head.parse(data)
        layout, table = parsed.layout, parsed.table
        if layout.digest not in self._counts:
            data = await self._kept(
                layout, lambda: trust.fetch_document("layouts", layout.digest, layout.length)
            )
            self._counts[layout.digest] = len((await asyncio.to_thread(Layout.parse, data)).segments)
        data = await self._kept(table, lambda: trust.fetch_document("tables", table.digest, table.length))
        rows = await asyncio.to_thread(SegmentTable.parse, data, self._counts[layout.digest])
        return {
            names.head(version),
            names.document("layouts", layout.digest),
            names.document("tables", table.digest),
            *(names.document("packs", pack) for pack in rows.packs),
        }

    async def _kept(self, reference: DocumentRef, fetch: Callable[[], Awaitable[bytes]]) -> bytes:
        """A document from the folder, else from the store."""
        path = self.documents and self.documents / reference.digest.removeprefix("sha256:")
        data = await asyncio.to_thread(read_kept, path, reference.digest) if path else None
        if data is None:
            data = await fetch()
            if path:
                await asyncio.to_thread(keep_document, path, data)
        return data

    async def of_retired(self, entry: RetiredEntry) -> set[str]:
        """As `of`; packs go before documents, so where a document is gone the packs were deleted already."""
        try:
            return await self.of(entry.version, entry.head)
        except ObjectMissing:
            return {names.head(entry.version)}


async def _used(
    repository: ModelRepository, state: SignedState, needs: Needs, due: Iterable[RetiredEntry]
) -> set[str]:
    """Every object that the signed state needs: versions kept, versions retired less than a day ago, deltas."""
    gone = {each.version for each in due}
    wanted: list[IndexEntry | RetiredEntry] = [*repository.index.versions]
    wanted += [each for each in repository.index.retired if each.version not in gone]
    gate = asyncio.Semaphore(_AT_ONCE)

    async def of(entry: IndexEntry | RetiredEntry) -> set[str]:
        async with gate:
            return await needs.of(entry.version, entry.head)

    used: set[str] = set()
    for each in await asyncio.gather(*map(of, wanted)):
        used |= each
    if state.receipts.index is not None:
        used.add(state.receipts.index.name)
    for facts in repository.channels.values():
        for delta in facts.deltas if facts is not None else ():
            used |= await _used_by_delta(repository, delta.digest, delta.length)
    return used


async def _used_by_delta(repository: ModelRepository, digest: str, length: int) -> set[str]:
    name = names.document("deltas", digest)
    try:
        data = await repository.trust.fetch_document("deltas", digest, length)
    except ObjectMissing:
        return {name}
    document = await asyncio.to_thread(DeltaDocument.parse, data)
    rows = [*(each.row for each in document.rows), *(each.row for each in document.parameters)]
    return {name, *(names.document("packs", row.pack) for row in rows)}


def _is_orphan(name: str, info: ObjectInfo, state: SignedState, now: float) -> bool:
    """Whether an object that nothing refers to has been so for long, and its name can never be asked for again."""
    if info.modified is None or info.modified > now - ORPHAN_AFTER_S:
        return False
    numbered = names.parse_metadata(name)
    if (
        numbered is not None
    ):  # overtaken metadata; a number above the committed one would be signed a second time
        number, role = numbered
        committed = state.files.get(role)
        return role != "root" and committed is not None and number < committed.number
    index = names.index_number(name)
    if index is not None:
        newest = state.receipts.index
        return newest is not None and index < (names.index_number(newest.name) or 0)
    kind = name.partition("/")[0]
    return kind in names.DOCUMENT_KINDS or names.head_version(name) is not None


async def _delete(repository: ModelRepository, gone: Iterable[ObjectInfo]) -> None:
    """Packs first: a version whose documents are gone has no packs left."""
    gate = asyncio.Semaphore(_AT_ONCE)
    listed = list(gone)

    async def delete(each: ObjectInfo) -> None:
        async with gate:
            reached("retention.before_delete")
            await repository.store.delete(each.key)

    folder = names.model_key(repository.model, "packs")
    for packs in (True, False):
        batch = [each for each in listed if each.key.startswith(f"{folder}/") is packs]
        await asyncio.gather(*map(delete, batch))
