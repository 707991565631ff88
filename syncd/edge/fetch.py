"""Brings a version's segments to their places in files under `incoming/`: what is on disk first, the rest by ranges.

Every segment is verified (encoded digest), decoded, verified again (decoded digest) and only then written, at its final
offset. A journal remembers it, so that a kill costs at most what was in flight. At most `MAX_IN_FLIGHT_BYTES` of
encoded bytes are in memory, and one decoded segment in each of `DECODERS` threads.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from syncd import allocator, durable
from syncd.artifact.plan import Fetch, Plan, Planned, plan
from syncd.artifact.segment import digest, verify_and_decode
from syncd.crashpoint import reached
from syncd.edge.budget import Budget
from syncd.edge.disk import (
    check_room,
    file_digest,
    is_hole,
    open_reserved,
    opened,
    pwrite_all,
    telling_full,
)
from syncd.edge.face import Documents, Face
from syncd.edge.journal import Journal
from syncd.edge.poll import back_off_s
from syncd.errors import SegmentCorrupt, SyncdError, about, first_of
from syncd.store.base import Store
from syncd.trust import names

MAX_RANGES: Final = 8
MAX_IN_FLIGHT_BYTES: Final = 64 << 20
MIN_PART_BYTES: Final = 512 << 10
MAX_PART_BYTES: Final = MAX_IN_FLIGHT_BYTES // MAX_RANGES
DECODERS: Final = 2
TRIES: Final = 3
_FLUSH_BYTES: Final = 32 << 20
_FLUSH_S: Final = 1.0

WITHIN_FETCH: Final = (
    "edge.fetch.segment"  # crash point: a segment is written, the journal does not know it yet
)

Progress = Callable[[int, int], None]
T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """A file on this disk that holds segments: where each begins, by digest. Read, verified, never trusted."""

    path: Path
    segments: Mapping[str, int]


@dataclass
class Fetched:
    """What a download moved: decoded bytes by where they came from, and encoded bytes asked of the store."""

    kept_bytes: int = 0
    reused_bytes: int = 0
    plain_bytes: int = 0
    wire_bytes: int = 0
    segments: dict[str, int] = field(default_factory=lambda: {"kept": 0, "reused": 0, "plain": 0})


class Download:
    """One attempt to bring a face of a version to `folder`; run once. A later attempt goes on where it ended.

    Args:
        folder: `incoming/N`: files go to `version/` below it, the journal beside that.
        face: the files to write.
        sources: files that may hold some of the segments.
        progress: told (encoded bytes received, all that have to be), from the event loop.
    """

    def __init__(
        self,
        store: Store,
        documents: Documents,
        face: Face,
        folder: Path,
        *,
        sources: Sequence[Source] = (),
        progress: Progress | None = None,
    ) -> None:
        self.staged = folder / "version"
        self.fetched = Fetched()
        self._store = store
        self._documents = documents
        self._face = face
        self._folder = folder
        self._sources = sources
        self._progress = progress
        self._slots = asyncio.Semaphore(MAX_RANGES)
        self._budget = Budget(MAX_IN_FLIGHT_BYTES)
        self._pool = ThreadPoolExecutor(DECODERS, "decode")
        self._flusher = ThreadPoolExecutor(1, "flush")  # a disk that is slow to sync holds no decoder up
        self._resumed = False
        self._ended = threading.Event()
        self._own = threading.local()
        self._written_lock = threading.Lock()
        self._unflushed: list[int] = []
        self._unflushed_bytes = 0
        self._flushed_at = time.monotonic()
        self._flush_lock = asyncio.Lock()

    async def run(self) -> Fetched:
        """Fetch, verify and write everything; each file is whole and durable when this returns.

        Raises:
            DiskFull: before anything is fetched. SegmentCorrupt, StoreErrors, NeedsNewerSyncd: what was verified stays
            for the next attempt.
        """
        allocator.set_up()
        head = self._documents.head
        with about(model=head.model, version=head.version):
            journal = None
            try:
                journal = await self._threaded(self._prepare)
                await self._bring(journal)
                await self._threaded(self._check_files)
            except BaseExceptionGroup as group:
                raise first_of(group) from None
            finally:
                self._ended.set()
                await asyncio.shield(asyncio.to_thread(self._stop, journal))
        return self.fetched

    async def _threaded(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)

    def _stop(self, journal: Journal | None) -> None:
        """Wait for the threads: when this has returned nothing of ours writes any more."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._flusher.shutdown(wait=True, cancel_futures=True)
        if journal is not None:
            journal.close()

    def _prepare(self) -> Journal:
        """Make the files at full size, all their blocks reserved, and open the journal."""
        with telling_full(self._folder):
            self.staged.mkdir(parents=True, exist_ok=True)
            missing, whole, self._resumed = 0, True, False
            for each in self._face.files:
                path = self.staged / each.name
                path.parent.mkdir(parents=True, exist_ok=True)
                found = path.stat().st_size if path.exists() else 0
                missing += max(0, each.size - found)
                whole = whole and found == each.size
                self._resumed = self._resumed or found > 0
            journal = self._folder / "journal"
            if not whole:  # what it says was true of files that are no longer here
                journal.unlink(missing_ok=True)
            check_room(self._folder, missing)
            for each in self._face.files:
                descriptor = open_reserved(self.staged / each.name, each.size)
                try:
                    os.pwrite(descriptor, each.start, 0)
                finally:
                    os.close(descriptor)
            for folder in (*{(self.staged / each.name).parent for each in self._face.files}, self._folder):
                durable.fsync_folder(folder)  # a power cut shall not take the names of what the journal knows
            durable.fsync_folder(self._folder.parent)
            names_of_files = digest("\n".join(each.name for each in self._face.files).encode())
            return Journal(journal, f"{self._documents.head_digest} {names_of_files}")

    async def _bring(self, journal: Journal) -> None:
        missing = await self._threaded(self._look_at_disk, journal)
        await self._flush(journal)
        planned = await self._threaded(self._plan, missing)
        total = planned.wire_bytes
        part = max(MIN_PART_BYTES, min(MAX_PART_BYTES, total // (4 * MAX_RANGES)))
        async with asyncio.TaskGroup() as group:
            for fetch in planned.fetch:
                await self._budget.take(fetch.length)
                group.create_task(self._fetch(fetch, part, total, journal))
        await self._flush(journal)

    def _plan(self, missing: Sequence[int]) -> Plan:
        """What to fetch for the segments that are nowhere on this disk."""
        layout, table = self._documents.layout, self._documents.table
        have = {table.rows[number].digest for number in self._face.places}
        have -= {table.rows[number].digest for number in missing}
        return plan(layout, table, have, faces=self._face.kind, files=self._face.numbers)

    def _look_at_disk(self, journal: Journal) -> list[int]:
        """Verify or copy what is on this disk already; returns the segments that have to be fetched."""
        table = self._documents.table
        in_place: dict[str, int] = {}
        missing = []
        for number in self._face.places:
            if self._ended.is_set():
                return []
            wanted, length = table.rows[number].digest, self._documents.layout.segments[number].length
            if number in journal.done:
                self._count("kept", length)
            elif self._resumed and self._read_back(number, wanted, length) is not None:
                self._count("kept", length)
                self._written([number], length)
            elif (found := self._from_sources(wanted, length)) is not None:
                self._write([number], found)
                self._count("reused", length)
            else:
                missing.append(number)
                continue
            in_place.setdefault(wanted, number)
        return [number for number in missing if not self._copied(number, in_place)]

    def _copied(self, number: int, in_place: Mapping[str, int]) -> bool:
        """Whether the segment could be copied from an equal one that is in its place already."""
        wanted, length = (
            self._documents.table.rows[number].digest,
            self._documents.layout.segments[number].length,
        )
        found = self._read_back(in_place[wanted], wanted, length) if wanted in in_place else None
        if found is not None:
            self._write([number], found)
            self._count("reused", length)
        return found is not None

    def _count(self, kind: str, length: int, segments: int = 1) -> None:
        name = f"{kind}_bytes"
        with self._written_lock:
            self.fetched.segments[kind] += segments
            setattr(self.fetched, name, getattr(self.fetched, name) + length)

    def _read_back(self, number: int, wanted: str, length: int) -> bytearray | None:
        """The segment out of its own places: an earlier attempt may have been killed before the journal knew it."""
        found = bytearray(length)
        for place in self._face.places[number]:
            with opened(self.staged / self._face.files[place.file].name, os.O_RDONLY) as file:
                if is_hole(file, place.offset, place.length):
                    return None
                part = os.pread(file, place.length, place.offset)
                found[place.start : place.start + len(part)] = part
        return found if digest(found) == wanted else None

    def _from_sources(self, wanted: str, length: int) -> bytes | None:
        for source in self._sources:
            offset = source.segments.get(wanted)
            if offset is None:
                continue
            try:
                with opened(source.path, os.O_RDONLY) as file:
                    found = os.pread(file, length, offset)
            except OSError:
                continue
            if digest(found) == wanted:
                return found
        return None

    def _write(self, numbers: Iterable[int], data: bytes | bytearray | memoryview) -> None:
        """Write a verified segment to every place that it has, under each number that it has."""
        view = memoryview(data)
        with telling_full(self._folder):
            for number in numbers:
                for place in self._face.places[number]:
                    with opened(self.staged / self._face.files[place.file].name, os.O_WRONLY) as file:
                        pwrite_all(file, view[place.start : place.start + place.length], place.offset)
        self._written(numbers, len(data))

    def _written(self, numbers: Iterable[int], length: int) -> None:
        with self._written_lock:
            self._unflushed += numbers
            self._unflushed_bytes += length

    def _take_written(self) -> list[int]:
        with self._written_lock:
            numbers, self._unflushed, self._unflushed_bytes = self._unflushed, [], 0
            return numbers

    async def _flush(self, journal: Journal) -> None:
        """Make what was written durable, then let the journal know it."""
        async with self._flush_lock:
            numbers = self._take_written()
            self._flushed_at = time.monotonic()
            if numbers:
                await asyncio.get_running_loop().run_in_executor(self._flusher, self._sync, numbers, journal)

    def _sync(self, numbers: Sequence[int], journal: Journal) -> None:
        files = {place.file for number in numbers for place in self._face.places[number]}
        with telling_full(self._folder):
            for each in files:
                with opened(self.staged / self._face.files[each].name, os.O_WRONLY) as file:
                    os.fdatasync(file)
            journal.add(numbers)

    async def _fetch(self, fetch: Fetch, part: int, total: int, journal: Journal) -> None:
        """One range of a pack: its parts side by side, then each of its segments."""
        try:
            key = names.model_key(self._documents.head.model, names.document("packs", fetch.pack))
            data = await self._fetch_parts(key, fetch, part, total)
            for planned in fetch.segments:
                await self._threaded(self._settle, planned, data, planned.row.offset - fetch.start)
            del data
            if self._unflushed_bytes >= _FLUSH_BYTES or time.monotonic() - self._flushed_at >= _FLUSH_S:
                await self._flush(journal)
        finally:
            await self._budget.give(fetch.length)

    async def _fetch_parts(
        self, key: str, fetch: Fetch, part: int, total: int
    ) -> bytes | bytearray | memoryview:
        """The bytes of one range, fetched in parts of at most `part` bytes side by side."""
        if fetch.length <= part:
            return await self._fetch_part(key, fetch.start, fetch.length, total)
        whole = bytearray(fetch.length)

        async def fill(at: int, length: int) -> None:
            whole[at : at + length] = await self._fetch_part(key, fetch.start + at, length, total)

        async with asyncio.TaskGroup() as group:
            for at in range(0, fetch.length, part):
                group.create_task(fill(at, min(part, fetch.length - at)))
        return whole

    async def _fetch_part(self, key: str, start: int, length: int, total: int) -> bytes | memoryview:
        for attempt in range(1, TRIES + 1):
            try:
                async with self._slots:
                    data = await self._store.get_range(key, start, length)
                break
            except SyncdError as error:
                if attempt == TRIES or not error.retry:
                    raise
                await asyncio.sleep(back_off_s(attempt, base_s=0.25, cap_s=5.0))
        self.fetched.wire_bytes += length
        if self._progress is not None:
            self._progress(self.fetched.wire_bytes, total)
        return data

    def _settle(self, planned: Planned, data: bytes | bytearray | memoryview, at: int) -> None:
        """Verify, decode, verify, write."""
        numbers = [number for number in planned.segments if number in self._face.places]
        if (
            not numbers
        ):  # only codecs with bases fetch what is no segment, and no such codec can be read here yet
            return
        segment = self._documents.layout.segments[numbers[0]]
        payload = memoryview(data)[at : at + planned.row.encoded_length]
        out = self._scratch(segment.length)
        verify_and_decode(payload, planned.row, segment.dtype, out)
        self._write(numbers, out)
        self._count("plain", len(out) * len(numbers), len(numbers))
        reached(WITHIN_FETCH)

    def _scratch(self, length: int) -> memoryview:
        """Memory of this thread's to decode into, used again and again: fresh pages cost more than the decoding."""
        if len(getattr(self._own, "buffer", b"")) < length:
            self._own.buffer = bytearray(length)
        return memoryview(self._own.buffer)[:length]

    def _check_files(self) -> None:
        """Compare each file that has a signed SHA-256 of its own with it."""
        for each in self._face.files:
            path = self.staged / each.name
            if each.digest is not None and (found := file_digest(path)) != each.digest:
                raise SegmentCorrupt(
                    f"{each.name} has digest {found}, signed is {each.digest}",
                    why="the version was published wrongly, or this disk changed bytes",
                    do="nothing of it is used; publish the checkpoint again",
                )
