"""One version in the making: claim a number, upload what is new, write the documents, commit.

Nothing is claimed before something new is found, so that equal content leaves no trace in the store.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from syncd.artifact.fields import is_plain, is_safe_path
from syncd.artifact.head import Architecture, DocumentRef, FileEntry, Golden, Head
from syncd.artifact.pack import Pack
from syncd.artifact.segment import Row, digest
from syncd.artifact.table import SegmentTable
from syncd.config import PublishSection
from syncd.crashpoint import reached
from syncd.errors import (
    CheckpointChanged,
    CheckpointUnsupported,
    DocumentInvalid,
    LostRace,
    ObjectExists,
    ObjectMissing,
    StoreBroken,
    UsageError,
)
from syncd.publisher.commit import STEPS, ModelRepository
from syncd.publisher.golden import GoldenSample, golden_sample
from syncd.publisher.material import Material
from syncd.publisher.memory import Memory
from syncd.publisher.provenance import provenance
from syncd.publisher.segments import Outcome, Progress, SegmentStream
from syncd.store.base import Create, Store
from syncd.trust import names

CRASH_POINTS: Final = (
    "publisher.claimed",
    "publisher.before_pack",
    "publisher.after_pack",
    "publisher.packs_stored",
    *STEPS,
    "publisher.before_remember",
    "publisher.remembered",
)
"""Every step after which a killed publisher must be able to go on; crash tests take each."""

_MAX_ALIASES_BYTES: Final = 32 * 2**10
_HEADS_AT_ONCE: Final = 8
_UPLOAD_LIFE_S: Final = 86400.0  # and memory.ATTEMPT_LIFE_S: together less than the seven days of an orphan
_NO_DIGEST: Final = f"sha256:{'0' * 64}"


@dataclass(frozen=True)
class Labels:
    """What a person says of a version, and the channel that it goes to."""

    channel: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Known:
    """What lies in the store for kept versions, and may be referred to: rows by segment, layouts by plain digest.

    condemned: packs of retired versions, which may not.
    """

    rows: Mapping[str, Row]
    layouts: Mapping[str, DocumentRef] = field(default_factory=dict)
    condemned: Collection[str] = ()


@asynccontextmanager
async def make_version(
    folder: Path, material: Material, section: PublishSection, labels: Labels, memory: Memory, dry_run: bool
) -> AsyncIterator[Version]:
    """Check labels and architecture, make the golden sample, and yield the version to upload and commit.

    Raises:
        UsageError, CheckpointUnsupported: labels, names or settings that no head may hold; nothing was uploaded.
        what `golden_sample` raises.
    """
    _check_head(material, section, labels)
    async with golden_sample(material, section, folder / "scratch") as sample:
        if sample is not None:
            await asyncio.to_thread(material.add_golden, sample.path)
        yield Version(material, section, labels, memory, sample, dry_run=dry_run)


class Version:
    """What becomes of one material.

    number: the version's, None until it is known. new: False where an existing version has this content.
    packed_bytes, new_segments: what was (in a dry run: would be) uploaded. notes: what a person should know.
    """

    def __init__(
        self,
        material: Material,
        section: PublishSection,
        labels: Labels,
        memory: Memory,
        sample: GoldenSample | None,
        *,
        dry_run: bool,
    ) -> None:
        self.number: int | None = None
        self.new = False
        self.content = ""
        self.packed_bytes = 0
        self.new_segments = 0
        self.notes = [f"{name} is not served: {why}" for name, why in material.named.left_out]
        self.notes += material.checkpoint.notes
        if sample is not None and not sample.finite:
            self.notes.append(
                "the golden sample's outputs are not finite: every gate will refuse this version"
            )
        self._material, self._section, self._labels, self._memory = material, section, labels, memory
        self._dry_run = dry_run
        self._created_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._claiming = asyncio.Lock()
        self._claimed: int | None = None
        self._outcome: Outcome | None = None
        self._head: Head | None = None
        self._documents: dict[str, bytes] = {}
        self._put_head: bytes | None = None
        self._copy = secrets.randbits(32)
        self._began = 0.0

    async def upload(self, repository: ModelRepository, known: Known, progress: Progress) -> None:
        """Store every pack that is missing; called again after a lost race, it uploads nothing twice.

        Raises:
            CheckpointChanged: the checkpoint was written to meanwhile; what was uploaded is of no use.
        """
        self._began = time.time()
        rows = {**await self._pending(repository.store, known.condemned), **known.rows}
        before = self._outcome
        if before is not None and all(row.digest in rows for row in before.rows):
            before.rows = tuple(rows[row.digest] for row in before.rows)
            outcome = before
        else:
            stream = SegmentStream(
                self._material, rows, lambda pack: self._store_pack(repository, pack), progress
            )
            outcome = await stream.run()
            if not await asyncio.to_thread(self._material.check_unchanged):
                await asyncio.to_thread(self._read_again, outcome)
            self.packed_bytes += outcome.packed_bytes
            self.new_segments += outcome.new
            self._tell_not_finite(outcome)
        reached("publisher.packs_stored")
        self._outcome = outcome
        await asyncio.to_thread(self._write_documents, outcome, known.layouts)

    async def commit(self, repository: ModelRepository) -> None:
        """Make it visible and release it; or find the version that has this content, and release that if need be.

        Raises:
            LostRace: plan anew. StoreUnreachable leaves open whether it is committed: publishing again finds out.
        """
        assert self._head is not None
        if time.time() - self._began > _UPLOAD_LIFE_S:
            raise LostRace(
                "the upload took longer than a day: what it began with may be gone",
                do="nothing is lost: it is planned anew, and what lies in the store is not uploaded again",
                model=self._section.model,
            )
        entries = repository.index.versions
        existing = max((each.version for each in entries if each.content == self.content), default=None)
        self.new = existing is None
        if existing is not None:
            self.number = existing
            await self._release(repository, existing)
            return
        if self._dry_run:
            return
        data = await self._head_bytes(repository)
        assert self._claimed is not None
        self._put_head = data
        await repository.commit(
            version=self._claimed,
            head=data,
            documents=self._documents,
            channel=self._labels.channel,
            step=reached,
        )
        self.number = self._claimed

    async def _release(self, repository: ModelRepository, version: int) -> None:
        facts = repository.channels.get(self._labels.channel)
        if self._dry_run or (facts is not None and facts.version >= version):
            return
        if repository.entry(version).yanked:
            self.notes.append(f"version {version} has this content and was yanked: it is not released")
        else:
            await repository.promote(version, self._labels.channel, step=reached)

    async def _head_bytes(self, repository: ModelRepository) -> bytes:
        """The head under the claimed number; under a new one if another head lies there since a lost race."""
        assert self._head is not None
        number = await self._claim(repository)
        data = replace(self._head, version=number).to_bytes()
        if self._put_head is not None and data != self._put_head:
            self._claimed = None
            number = await self._claim(repository)
            data = replace(self._head, version=number).to_bytes()
        return data

    async def _claim(self, repository: ModelRepository) -> int:
        async with self._claiming:
            if self._claimed is None:
                self._claimed = await repository.claim()
                reached("publisher.claimed")
            return self._claimed

    async def _store_pack(self, repository: ModelRepository, pack: Pack) -> None:
        if self._dry_run:
            return
        await self._claim(repository)
        reached("publisher.before_pack")
        store = repository.store
        # Remembered before it is put: whoever is stopped in between finds out later whether it lies there.
        await asyncio.to_thread(self._memory.keep_pack, pack.digest, pack.rows)
        key = names.model_key(self._section.model, names.document("packs", pack.digest))
        try:
            await store.put(key, pack.data, mode=Create())
        except ObjectExists as error:
            size = (await store.head(key)).size
            if size != len(pack.data):
                raise StoreBroken(
                    f"the store holds {size} bytes as pack {pack.digest}, which has {len(pack.data)}",
                    do="delete that object and publish again; no version refers to it",
                    store=store.url,
                ) from error
        reached("publisher.after_pack")

    async def _pending(self, store: Store, condemned: Collection[str]) -> dict[str, Row]:
        """Rows of packs that an attempt before this one stored and that are still there, and will be."""
        packs = dict(await asyncio.to_thread(self._memory.packs))
        for pack in packs.keys() & set(condemned):
            del packs[pack]
        gate = asyncio.Semaphore(_HEADS_AT_ONCE)

        async def rows_of(pack: str) -> list[Row]:
            async with gate:
                try:
                    await store.head(names.model_key(self._section.model, names.document("packs", pack)))
                except ObjectMissing:
                    return []
                return packs[pack]

        found = await asyncio.gather(*map(rows_of, packs))
        return {row.digest: row for rows in found for row in rows}

    def _read_again(self, outcome: Outcome) -> None:
        """Only a ctime changed (a rotation): equal digests show that the bytes did not. Blocking."""
        self._material.use_view(None)
        for index in self._material.in_file_order():
            data = memoryview(bytearray(self._material.segments[index].length))
            self._material.read_segment(index, data)
            if digest(data) != outcome.rows[index].digest:
                raise CheckpointChanged(
                    "the checkpoint's bytes changed while it was read",
                    why="training is writing to it",
                    do="nothing was published; it is looked at again when it is quiet",
                )
        self._material.check_unchanged()

    def _write_documents(self, outcome: Outcome, layouts: Mapping[str, DocumentRef]) -> None:
        """Layout and table: a kept version's layout is shared, what is new has a name that was never given."""
        table = SegmentTable(outcome.rows, len(outcome.rows)).to_bytes(copy=self._copy)
        self._documents = {names.document("tables", digest(table)): table}
        shared = layouts.get(digest(self._material.layout.plain()))
        if shared is None:
            layout = self._material.layout.to_bytes(copy=self._copy)
            self._documents[names.document("layouts", digest(layout))] = layout
            shared = DocumentRef(digest(layout), len(layout))
        references = shared, DocumentRef(digest(table), len(table))
        head = _head(self._material, self._section, self._labels, outcome.file_digests, *references)
        self._head = replace(head, created_at=self._created_at)
        self.content = self._head.content_digest()

    def _tell_not_finite(self, outcome: Outcome) -> None:
        if not outcome.not_finite:
            return
        bad = set(outcome.not_finite)
        layout = self._material.layout
        found = [
            each.name
            for each in layout.tensors
            if any(span.segment in bad for span in layout.tensor_spans(each))
        ]
        self.notes.append(
            f"not all numbers are finite in or near {', '.join(found[:3])}"
            f"{f' and {len(found) - 3} more' if len(found) > 3 else ''}: every gate will refuse this version"
        )


def _head(
    material: Material,
    section: PublishSection,
    labels: Labels,
    digests: tuple[str, ...],
    layout: DocumentRef,
    table: DocumentRef,
) -> Head:
    checkpoint, architecture = material.checkpoint, section.architecture
    scalars = {name: value for name, value in checkpoint.scalars.items() if is_plain({name: value}, 1024)}
    aliases = dict(material.layout.aliases)
    return Head(
        model=section.model,
        version=1,
        created_at="2000-01-01T00:00:00Z",
        checkpoint_kind=checkpoint.kind,
        checkpoint_bytes=material.checkpoint_bytes,
        model_bytes=material.layout.model_bytes,
        training_state=any(file.use == "training" for file in material.files),
        files=tuple(
            FileEntry(file.path, file.use, file.size, digests[number])
            for number, file in enumerate(material.files)
        ),
        layout=layout,
        table=table,
        architecture=Architecture(architecture.name, architecture.args) if architecture else None,
        golden=Golden() if material.has_golden else None,
        aliases=aliases if is_plain(aliases, _MAX_ALIASES_BYTES) else {},
        model_key="/".join(map(str, material.selection.key)),
        metrics=labels.metrics,
        tags=labels.tags,
        note=labels.note,
        provenance=provenance(checkpoint.path.parent, scalars),
    )


def _check_head(material: Material, section: PublishSection, labels: Labels) -> None:
    """Refuse, before a byte is uploaded, what no head may hold."""
    for file in material.files:
        if not is_safe_path(file.path):
            raise CheckpointUnsupported(
                f"a file called {file.path!r:.80} cannot travel",
                do="rename it: no control characters, no backslash, at most 255 bytes",
            )
    nothing: Any = DocumentRef(_NO_DIGEST, 1)
    try:
        _head(material, section, labels, (_NO_DIGEST,) * len(material.files), nothing, nothing).to_bytes()
    except DocumentInvalid as error:
        raise UsageError(
            error.what, why="metrics, tags, note or [publish.architecture] pass what a version may say"
        ) from error
