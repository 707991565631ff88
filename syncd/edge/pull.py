"""`syncd pull`: a version's model view in a person's folder, without a daemon.

The files that one sees in DIR are links to `.syncd/current/…`; `current` is one link, replaced by rename. So whatever
kills a pull, model, head and side files are all of the old version or all of the new one, never mixed.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from syncd import durable
from syncd.artifact.plan import plan
from syncd.artifact.segment import digest
from syncd.crashpoint import reached
from syncd.edge import install
from syncd.edge.by_hand import OWN_FOLDER, Workshop, channel_target, version_target, workshop
from syncd.edge.disk import telling_full
from syncd.edge.documents import cached_documents, read_documents
from syncd.edge.face import Documents, Face, node_face
from syncd.edge.fetch import Download, Fetched, Progress, Source
from syncd.edge.verify import check_installed
from syncd.errors import Failed
from syncd.node.links import FILES_FOLDER, HEAD_FILE, MODEL_FILE
from syncd.store.base import Store

CRASH_POINTS: Final = ("pull.before-place", "pull.before-switch", "pull.after-switch")


@dataclass(frozen=True)
class PullResult:
    """What a pull did. `plan` and `wire_bytes` are bytes; `reused` counts what was there already."""

    model: str
    version: int
    path: Path
    model_bytes: int
    wire_bytes: int
    requests: int
    plan: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


async def pull(
    store: Store,
    root: bytes,
    model: str,
    *,
    version: int | None = None,
    channel: str = "latest",
    to: Path,
    progress: Progress | None = None,
    dry_run: bool = False,
    accept_expired: bool = False,
) -> PullResult:
    """Bring a version's model view to `to`: model.safetensors, head.json, side files; or, without tensors, its files.

    Args:
        root: the bytes of the fleet root.
        version: in place of what the channel releases.
        to: made if it is not there; our own files go to `.syncd` below it.
    Raises:
        RolledBack and other Refused, StoreErrors, UnknownModel, UnknownVersion, DiskFull; Failed where files that are
        not ours have the names of the version's. What was in `to` before is whole in each case.
    """
    started, wire, requests = time.monotonic(), store.wire_bytes, store.requests
    to = to.absolute()
    async with workshop(to, store, root, model, accept_expired=accept_expired, dry_run=dry_run) as own:
        if version is None:
            target = await channel_target(own.trust, model, channel)
        else:
            target = await version_target(own.trust, model, version)
        documents = await read_documents(own.trust, own.cache, model, target)
        view = _View(to)
        await asyncio.to_thread(view.refuse_foreign, documents)
        if dry_run:
            moved = await asyncio.to_thread(_estimate, documents, view)
        elif await asyncio.to_thread(view.holds, documents):
            moved = {"reused": documents.head.model_bytes, "delta": 0, "plain": 0}
            await asyncio.to_thread(view.show, documents)
            await asyncio.to_thread(_clear_others, own.incoming, "")
        else:
            fetched = await _bring(store, own, documents, view, progress)
            reused = fetched.kept_bytes + fetched.reused_bytes
            moved = {"reused": reused, "delta": 0, "plain": fetched.plain_bytes}
        return PullResult(
            model=model,
            version=target.version,
            path=to,
            model_bytes=documents.head.model_bytes,
            wire_bytes=store.wire_bytes - wire,
            requests=store.requests - requests,
            plan=moved,
            seconds=round(time.monotonic() - started, 3),
        )


async def _bring(
    store: Store, own: Workshop, documents: Documents, view: _View, progress: Progress | None
) -> Fetched:
    incoming = own.incoming / str(documents.head.version)
    await asyncio.to_thread(_clear_others, own.incoming, incoming.name)
    sources = await asyncio.to_thread(view.sources, own)
    face = await asyncio.to_thread(node_face, documents)
    download = Download(store, documents, face, incoming, sources=sources, progress=progress)
    fetched = await download.run()
    await asyncio.to_thread(view.place, documents, download.staged)
    await asyncio.to_thread(_clear_others, own.incoming, "")
    keep = {documents.head_digest, documents.head.layout.digest, documents.head.table.digest}
    await asyncio.to_thread(own.cache.sweep, keep)
    return fetched


class _View:
    """What one sees in the folder, and the version folder below `.syncd` that it shows. Methods block."""

    def __init__(self, to: Path) -> None:
        self.to = to
        self.own = to / OWN_FOLDER
        self.versions = self.own / "versions"
        self.current = self.own / "current"

    def names(self, documents: Documents) -> dict[str, str]:
        """Name in the folder → path below the version folder; the model last, since it is what one waits for."""
        shown = {HEAD_FILE: HEAD_FILE}
        if documents.has_model:
            shown |= {documents.head.files[each].name: "" for each in documents.head.side_files()}
            return {name: name for name in (*shown, MODEL_FILE)}
        tops = {each.path.partition("/")[0] for each in documents.head.files}
        return shown | {top: f"{FILES_FOLDER}/{top}" for top in sorted(tops)}

    def refuse_foreign(self, documents: Documents) -> None:
        """Never write over a file that a pull did not put there."""
        foreign = [
            name
            for name in self.names(documents)
            if os.path.lexists(self.to / name) and not self._is_ours(self.to / name)
        ]
        if foreign:
            raise Failed(
                f"{self.to} has {', '.join(foreign)} already, and not from a pull",
                do="move them away or give another --to; nothing was changed",
                path=self.to,
            )

    def _is_ours(self, path: Path) -> bool:
        return path.is_symlink() and str(path.readlink()).startswith(f"{OWN_FOLDER}/current/")

    def folder(self) -> Path | None:
        """The version folder that is shown."""
        try:
            return self.own / self.current.readlink()
        except OSError:
            return None

    def holds(self, documents: Documents) -> bool:
        """Whether exactly this version is shown, with every byte as signed."""
        folder = self.folder()
        return folder is not None and not check_installed(folder, documents).bad

    def sources(self, own: Workshop) -> list[Source]:
        """The model that is shown, as a source of segments."""
        folder = self.folder()
        if folder is None or not (folder / MODEL_FILE).exists():
            return []
        documents = cached_documents(own.cache, digest((folder / HEAD_FILE).read_bytes()))
        return [install.source_of(folder / MODEL_FILE, documents)] if documents else []

    def place(self, documents: Documents, staged: Path) -> None:
        """Make the finished download what is shown; then the version before it goes."""
        with telling_full(self.to):
            durable.replace_file(staged / HEAD_FILE, documents.head_bytes)
            durable.settle_tree(staged, 0o644)
            durable.make_folder(self.versions)
            name = self._free_name(documents.head.version)
            reached(CRASH_POINTS[0])
            staged.rename(self.versions / name)
            durable.fsync_folder(self.versions)
            reached(CRASH_POINTS[1])
            durable.replace_link(self.current, f"versions/{name}")
            reached(CRASH_POINTS[2])
        self.show(documents)

    def _free_name(self, version: int) -> str:
        names = (f"{version}" if count == 0 else f"{version}-{count}" for count in range(1000))
        return next(name for name in names if not (self.versions / name).exists())

    def show(self, documents: Documents) -> None:
        """Links for the names of the version; links and version folders of others go."""
        names = self.names(documents)
        for name, below in names.items():
            target = f"{OWN_FOLDER}/current/{below}"
            path = self.to / name
            if not (path.is_symlink() and str(path.readlink()) == target):
                durable.replace_link(path, target)
        for each in self.to.iterdir():
            if self._is_ours(each) and each.name not in names:
                each.unlink()
        shown = self.folder()
        for folder in self.versions.iterdir():
            if shown is None or folder.name != shown.name:
                shutil.rmtree(folder)


def _clear_others(incoming: Path, keep: str) -> None:
    if incoming.is_dir():
        for each in incoming.iterdir():
            if each.name != keep:
                shutil.rmtree(each)


def _estimate(documents: Documents, view: _View) -> dict[str, int]:
    """What a pull would move, judged by digests alone; `plain` in encoded bytes."""
    face: Face = node_face(documents)
    have: set[str] = set()
    folder = view.folder()
    if folder is not None and (folder / MODEL_FILE).exists():
        from syncd.edge.documents import DocumentCache

        cache = DocumentCache(view.own / "documents")
        held = cached_documents(cache, digest((folder / HEAD_FILE).read_bytes()))
        have = {row.digest for row in held.table.rows} if held else set()
    planned = plan(documents.layout, documents.table, have, faces=face.kind, files=face.numbers)
    reused = sum(documents.layout.segments[number].length for number in planned.reuse)
    return {"reused": reused, "delta": 0, "plain": planned.wire_bytes}
