"""`syncd restore`: every file of a version, byte for byte, optimizer and all, so that training goes on."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from syncd import durable
from syncd.crashpoint import reached
from syncd.edge.by_hand import Workshop, entry_target, read_index, version_target, workshop
from syncd.edge.disk import file_digest, telling_full
from syncd.edge.documents import read_documents
from syncd.edge.face import Documents, files_face
from syncd.edge.fetch import Download, Progress
from syncd.edge.standing import Target
from syncd.errors import Failed, UnknownModel, UnknownVersion
from syncd.store.base import Store

CRASH_POINT: Final = "restore.between-files"


@dataclass(frozen=True)
class RestoreResult:
    """What a restore did; `version` is None where `if_any` found nothing. files: path, bytes, sha256 (hex)."""

    model: str
    version: int | None
    path: Path
    files: list[dict[str, Any]] = field(default_factory=list)
    wire_bytes: int = 0
    requests: int = 0
    seconds: float = 0.0


async def restore(
    store: Store,
    root: bytes,
    model: str,
    *,
    version: int | None = None,
    to: Path,
    if_any: bool = False,
    progress: Progress | None = None,
    dry_run: bool = False,
    accept_expired: bool = False,
) -> RestoreResult:
    """Bring every file of a version to `to`, under the paths that they had.

    Each file is put together aside, compared with its signed SHA-256, and renamed into place. A file that is there
    already with the same bytes stays; with other bytes nothing is touched.

    Args:
        version: by default the newest with training state.
        if_any: where nothing was published yet, do nothing rather than fail: for a training script's first run.
    Raises:
        Failed: `to` has other files under these names; they are named, and nothing was changed.
        UnknownModel, UnknownVersion, Refused, StoreErrors, DiskFull.
    """
    started, wire, requests = time.monotonic(), store.wire_bytes, store.requests
    to = to.absolute()
    existed = to.exists()
    async with workshop(to, store, root, model, accept_expired=accept_expired, dry_run=dry_run) as own:
        try:
            target = await _target(own, model, version)
        except (UnknownModel, UnknownVersion):
            if not if_any or version is not None:
                raise
            if not existed and not dry_run:
                await asyncio.to_thread(shutil.rmtree, to)
            return RestoreResult(model, None, to)
        documents = await read_documents(own.trust, own.cache, model, target)
        missing = await asyncio.to_thread(_missing_files, documents, to)
        if missing and not dry_run:
            await _bring(store, own, documents, missing, to, progress)
        return RestoreResult(
            model=model,
            version=target.version,
            path=to,
            files=[{"path": f.path, "bytes": f.size, "sha256": f.sha256} for f in documents.head.files],
            wire_bytes=store.wire_bytes - wire,
            requests=store.requests - requests,
            seconds=round(time.monotonic() - started, 3),
        )


async def _target(own: Workshop, model: str, version: int | None) -> Target:
    if version is not None:
        return await version_target(own.trust, model, version, yanked_too=True)
    index = await read_index(own.trust)
    entries = (
        [each for each in index.versions if each.training_state and not each.yanked]
        if index is not None
        else []
    )
    if not entries:
        kept = [str(each.version) for each in index.versions] if index is not None else []
        raise UnknownVersion(
            f"{model} has no version with training state",
            do=f"name one of {', '.join(kept[-20:])}: `syncd restore {model}@{kept[-1]}`"
            if kept
            else "publish one",
            model=model,
        )
    return entry_target(entries[-1])


async def _bring(
    store: Store,
    own: Workshop,
    documents: Documents,
    missing: Sequence[int],
    to: Path,
    progress: Progress | None,
) -> None:
    face = files_face(documents, numbers=missing)
    download = Download(store, documents, face, own.incoming / str(documents.head.version), progress=progress)
    await download.run()
    await asyncio.to_thread(_put_in_place, [each.name for each in face.files], download.staged, to)
    await asyncio.to_thread(shutil.rmtree, own.incoming)


def _missing_files(documents: Documents, to: Path) -> list[int]:
    """The numbers of the files that are not there yet. Blocks: reads those that may be the same."""
    missing, different = [], []
    for number, entry in enumerate(documents.head.files):
        path = to / entry.path
        if not os.path.lexists(path):
            missing.append(number)
        elif not (path.is_file() and path.stat().st_size == entry.size and file_digest(path) == entry.digest):
            different.append(entry.path)
    if different:
        raise Failed(
            f"{to} has other files under these names: {', '.join(different[:20])}",
            do="move them away or give another --to; nothing was changed",
            path=to,
        )
    return missing


def _put_in_place(names: Sequence[str], staged: Path, to: Path) -> None:
    """Rename finished, durable files to where they belong; a file that came there meanwhile is never written over."""
    umask = os.umask(0)
    os.umask(umask)
    with telling_full(to):
        for name in names:
            path = to / name
            durable.make_folder(path.parent)
            (staged / name).chmod(0o666 & ~umask)
            if os.path.lexists(path):
                raise Failed(f"{path} came to be while it was restored", do="move it away and restore again")
            (staged / name).rename(path)
            durable.fsync_folder(path.parent)
            reached(CRASH_POINT)
