"""What `pull` and `restore` share: a folder of a person's, our own files in `.syncd` below it, and which version."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from syncd import durable
from syncd.artifact.index import Index, IndexEntry
from syncd.edge.disk import telling_full
from syncd.edge.documents import DocumentCache
from syncd.edge.standing import Target
from syncd.errors import NodeBusy, UnknownVersion
from syncd.node.links import FolderLock
from syncd.store.base import Store
from syncd.trust.verify import ModelTrust

OWN_FOLDER: Final = ".syncd"


@dataclass(frozen=True)
class Workshop:
    """`.syncd` in a person's folder: receipts, documents, what is being fetched. `made` says that it was not there."""

    path: Path
    trust: ModelTrust
    cache: DocumentCache
    made: bool

    @property
    def incoming(self) -> Path:
        """Where downloads are put together."""
        return self.path / "incoming"


@contextlib.asynccontextmanager
async def workshop(
    to: Path, store: Store, root: bytes, model: str, *, accept_expired: bool = False, dry_run: bool = False
) -> AsyncIterator[Workshop]:
    """Open `.syncd` in `to` for one command at a time; a dry run works on a copy that is thrown away.

    Raises:
        NodeBusy: another command works there. DiskFull.
    """
    made = not (to / OWN_FOLDER).is_dir()
    if dry_run:
        with tempfile.TemporaryDirectory(prefix="syncd-dry-run-") as copy:
            await asyncio.to_thread(_copy_small, to / OWN_FOLDER, Path(copy))
            yield _open(Path(copy), store, root, model, accept_expired, made)
        return
    lock = await asyncio.to_thread(_lock, to)
    try:
        yield _open(to / OWN_FOLDER, store, root, model, accept_expired, made)
    finally:
        lock.close()


def _open(path: Path, store: Store, root: bytes, model: str, accept_expired: bool, made: bool) -> Workshop:
    trust = ModelTrust(store, model, path / "trust" / model, root, accept_expired=accept_expired)
    return Workshop(path, trust, DocumentCache(path / "documents"), made)


def _lock(to: Path) -> FolderLock:
    import fcntl

    with telling_full(to):
        durable.make_folder(to)
        durable.make_folder(to / OWN_FOLDER, 0o700 if os.geteuid() else 0o755)
        descriptor = os.open(to / OWN_FOLDER / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    lock = FolderLock(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise NodeBusy(
            f"another syncd command works in {to}", do="wait for it; nothing was changed"
        ) from error
    return lock


def _copy_small(own: Path, copy: Path) -> None:
    for name in ("trust", "documents"):
        if (own / name).is_dir():
            shutil.copytree(own / name, copy / name, symlinks=True)


async def channel_target(trust: ModelTrust, model: str, channel: str) -> Target:
    """What the channel releases now. Raises UnknownVersion where it releases nothing that may be installed."""
    await trust.refresh(channel)
    facts = trust.accepted(channel)
    if facts is None:
        raise UnknownVersion(
            f"channel {channel} of {model} has no release yet",
            do=f"publish one: `syncd publish PATH --model {model} --channel {channel}`",
        )
    if facts.version in facts.yanked:
        raise UnknownVersion(f"version {facts.version} was yanked", do="promote another one", model=model)
    return Target(facts.version, facts.head_digest, facts.head_length)


async def read_index(trust: ModelTrust) -> Index | None:
    """The model's index; None before its first version."""
    data = await trust.index()
    return Index.parse(data) if data else None


async def version_target(trust: ModelTrust, model: str, version: int, *, yanked_too: bool = False) -> Target:
    """A kept version by its number. Raises UnknownVersion; also for a yanked one, unless `yanked_too`."""
    index = await read_index(trust)
    entry = index.find(version) if index is not None else None
    if entry is None:
        kept = [each.version for each in index.versions] if index is not None else []
        raise UnknownVersion(
            f"{model} has no version {version}",
            do=f"kept are {', '.join(map(str, kept[-20:])) or 'none'}",
            model=model,
        )
    if entry.yanked and not yanked_too:
        raise UnknownVersion(
            f"version {version} was yanked: {entry.yanked}", do="name another version", model=model
        )
    return entry_target(entry)


def entry_target(entry: IndexEntry) -> Target:
    """An index entry as a target."""
    return Target(entry.version, entry.head.digest, entry.head.length)
