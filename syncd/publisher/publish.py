"""One checkpoint into the store, now: plan, upload what is new, commit; a lost race is planned anew.

A version that has this content already is the answer, with `new` false; it is released where the channel is behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from syncd.artifact.fields import MODEL_NAME
from syncd.config import PublishSection
from syncd.crashpoint import reached
from syncd.errors import LostRace, UnknownChannel, UsageError, about
from syncd.publisher.commit import ModelRepository, open_model
from syncd.publisher.known import KnownSegments
from syncd.publisher.material import Material, open_material
from syncd.publisher.memory import Memory
from syncd.publisher.segments import Progress
from syncd.publisher.version import Known, Labels, Version, make_version
from syncd.state.db import Database
from syncd.store.base import Store

MAX_RACES: Final = 8
_RACE_PAUSE_S: Final = 0.2


@dataclass(frozen=True)
class PublishResult:
    """What became of a checkpoint.

    version: None only after a dry run that would have made a new one. uploaded_bytes: bodies of packs (would be, in a
    dry run). channels: those on which this version is released now. notes: what a person should know.
    """

    model: str
    version: int | None
    new: bool
    checkpoint_bytes: int
    uploaded_bytes: int
    segments: Mapping[str, int]
    channels: tuple[str, ...]
    seconds: float
    content: str
    deltas: tuple[Mapping[str, int], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass
class Place:
    """Where and as whom to publish; what is worth keeping from one checkpoint to the next."""

    store: Store
    trust_root: bytes
    keys: Path | None
    db: Database
    folder: Path
    known: dict[str, KnownSegments] = field(default_factory=dict)

    def of(self, model: str) -> Path:
        """The folder of a model's publisher: signed metadata as accepted, documents, scratch."""
        if not MODEL_NAME.fullmatch(model):
            raise UsageError(
                f"{model!r} is not a model's name", do="a name matches [a-z0-9][a-z0-9._-]{0,63}"
            )
        return self.folder / "publisher" / model

    def known_segments(self, model: str) -> KnownSegments:
        """What is known of the model's segments, kept as long as this place."""
        return self.known.setdefault(model, KnownSegments(self.of(model) / "documents"))

    async def open_model(self, model: str) -> ModelRepository:
        """The model's verified state and the right to sign the next. Raises as `commit.open_model`."""
        if self.keys is None:
            raise UsageError("there are no keys to sign with", do="set [trust] keys", model=model)
        return await open_model(self.store, model, self.trust_root, self.keys, self.of(model) / "trust")


async def publish(
    path: Path,
    *,
    section: PublishSection,
    store: Store,
    trust_root: bytes,
    keys: Path | None,
    db: Database,
    folder: Path | None = None,
    channel: str | None = None,
    metrics: Mapping[str, float] | None = None,
    tags: Sequence[str] = (),
    note: str = "",
    progress: Progress | None = None,
    dry_run: bool = False,
) -> PublishResult:
    """Publish the checkpoint at `path` and release it; returns when it can be read.

    Args:
        section: which part is the model, side files, architecture, golden sample, channel.
        folder: for accepted metadata and documents; default: `trust` beside the state file.
        channel: in place of the section's.
        progress: called with bytes done, bytes in all and the phase, on the event loop.
        dry_run: read, compare and encode everything, and store nothing.
    Raises:
        CheckpointIncomplete, CheckpointChanged, CheckpointHostile (exit 3) and the other checkpoint errors.
        UnknownModel, UnknownChannel, UsageError, ArchitectureRefused: nothing was uploaded.
        NotAuthentic: the store is not the fleet's, or was set back. StoreError: it cannot be reached or written.
        LostRace: other publishers committed first, `MAX_RACES` times.
    Memory: at most 64 MiB of segments and packs, whatever the size of the checkpoint.
    """
    place = Place(store, trust_root, keys, db, folder or db.path.parent / "trust")
    labels = Labels(channel or section.channel, dict(metrics or {}), tuple(tags), note)
    return await publish_at(place, path, section, labels, progress, dry_run=dry_run)


async def publish_at(
    place: Place,
    path: Path,
    section: PublishSection,
    labels: Labels,
    progress: Progress | None = None,
    *,
    identity: str | None = None,
    dry_run: bool = False,
) -> PublishResult:
    """`publish` for one who publishes often; `identity` is remembered with the version, in one step."""
    started = time.monotonic()
    with about(model=section.model, path=path):
        repository = await place.open_model(section.model)
        if labels.channel not in repository.channels:
            raise _unknown_channel(section.model, labels.channel, repository)
        material = await _open(path, section)
        try:
            version = await _race(place, repository, material, section, labels, progress or _silent, dry_run)
        finally:
            await asyncio.to_thread(material.close)
        if not dry_run and version.number is not None:
            reached("publisher.before_remember")
            memory, name = Memory(place.db, section.model), identity or f"content {version.content}"
            await asyncio.to_thread(memory.remember, name, version.content, version.number)
            reached("publisher.remembered")
        return _result(section.model, repository, material, version, time.monotonic() - started)


async def _open(path: Path, section: PublishSection) -> Material:
    """Open in a thread; cancelled meanwhile, what was opened is closed."""
    opening = asyncio.ensure_future(asyncio.to_thread(open_material, path, section))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        with contextlib.suppress(Exception):
            (await opening).close()
        raise


async def _race(
    place: Place,
    repository: ModelRepository,
    material: Material,
    section: PublishSection,
    labels: Labels,
    progress: Progress,
    dry_run: bool,
) -> Version:
    """Plan and commit until nobody was faster, at most `MAX_RACES` times; what was uploaded is never uploaded again."""
    memory = Memory(place.db, section.model)
    async with make_version(place.of(section.model), material, section, labels, memory, dry_run) as version:
        for attempt in range(1, MAX_RACES + 1):
            try:
                known = place.known_segments(section.model)
                rows = await known.rows(repository)
                there = Known(rows, known.layouts(), await known.condemned(repository))
                await version.upload(repository, there, progress)
                await version.commit(repository)
                return version
            except LostRace:
                if attempt == MAX_RACES:
                    raise
                await asyncio.sleep(random.uniform(0, _RACE_PAUSE_S * attempt))
                await repository.load()
        raise AssertionError("unreachable")


def _result(
    model: str, repository: ModelRepository, material: Material, version: Version, seconds: float
) -> PublishResult:
    on = tuple(
        sorted(
            channel
            for channel, facts in repository.channels.items()
            if facts is not None and facts.version == version.number
        )
    )
    return PublishResult(
        model=model,
        version=version.number,
        new=version.new,
        checkpoint_bytes=material.checkpoint_bytes,
        uploaded_bytes=version.packed_bytes,
        segments={"total": len(material.segments), "new": version.new_segments},
        channels=on,
        seconds=seconds,
        content=version.content,
        notes=tuple(version.notes),
    )


def _unknown_channel(model: str, channel: str, repository: ModelRepository) -> UnknownChannel:
    return UnknownChannel(
        f"model {model} has no channel {channel!r}",
        why=f"it has {', '.join(sorted(repository.channels))}",
        do=f"a new channel needs the fleet key: `syncd init STORE --model {model} --channel {channel}`",
        model=model,
    )


def _silent(done: int, total: int, phase: str) -> None:
    del done, total, phase
