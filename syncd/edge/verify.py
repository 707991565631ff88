"""`syncd verify`: every byte of what is installed, or of what the store keeps, against the signed documents."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from syncd.artifact.pack import MAX_PACK_BYTES
from syncd.artifact.segment import digest, verify_and_decode
from syncd.edge.by_hand import version_target
from syncd.edge.disk import file_digest
from syncd.edge.documents import DocumentCache, cached_documents, read_documents
from syncd.edge.face import Documents, Face, node_face
from syncd.errors import NotInstalled, Refused, StoreError, SyncdError
from syncd.node.links import HEAD_FILE, NodeFolder
from syncd.state import installed
from syncd.state.db import Database
from syncd.store.base import Store
from syncd.trust import names
from syncd.trust.verify import ModelTrust


@dataclass
class VerifyResult:
    """What was looked at, and each thing that is not as signed: what it is, and how it differs."""

    ok: bool = True
    checked_bytes: int = 0
    bad: list[dict[str, Any]] = field(default_factory=list)

    def add(self, checked: Checked, **where: Any) -> None:
        """Take in what a part of the check found."""
        self.checked_bytes += checked.bytes
        self.bad += [{**where, **each} for each in checked.bad]
        self.ok = not self.bad


@dataclass
class Checked:
    """Bytes read, and what was wrong with them."""

    bytes: int = 0
    bad: list[dict[str, Any]] = field(default_factory=list)

    def wrong(self, what: str, reason: str) -> None:
        """Note a difference."""
        self.bad.append({"what": what, "reason": reason})


async def verify_node(node: NodeFolder, model: str | None = None, version: int | None = None) -> VerifyResult:
    """Read every byte of the installed versions (of one model, of one version); needs no network.

    Raises:
        NotInstalled: nothing of that name is installed.
    """
    return await asyncio.to_thread(_verify_node, node, model, version)


def _verify_node(node: NodeFolder, model: str | None, version: int | None) -> VerifyResult:
    result, found = VerifyResult(), False
    for each in [model] if model is not None else node.models():
        folder = node.model_folder(each)
        signed = _signed_heads(node, each)
        cache = DocumentCache(node.path / "documents" / each)
        for number in folder.versions():
            if version in (None, number):
                found = True
                checked = _check_version(folder.version_folder(number), cache, signed.get(number))
                result.add(checked, model=each, version=number)
    if not found and model is not None:
        name = model if version is None else f"{model}@{version}"
        raise NotInstalled(f"{name} is not installed in {node.path}", path=node.path)
    return result


def _signed_heads(node: NodeFolder, model: str) -> dict[int, str]:
    """Version → the digest of its head that was verified when it was installed."""
    path = node.path / "state.db"
    if not path.exists():
        return {}
    with Database(path) as db:
        return {number: each.head_digest for number, each in installed.installed(db, model).items()}


def _check_version(folder: Path, cache: DocumentCache, signed: str | None) -> Checked:
    checked = Checked()
    try:
        head = (folder / HEAD_FILE).read_bytes()
        checked.bytes += len(head)
        if signed is None or digest(head) != signed:
            checked.wrong(
                HEAD_FILE, f"its digest is {digest(head)}, signed is {signed or 'none that is known here'}"
            )
            return checked
        cache_lacks = f"its layout or segment table is not in {cache.folder}"
        documents = cached_documents(cache, signed) or _with_head(cache, head)
        if documents is None:
            checked.wrong(HEAD_FILE, cache_lacks)
            return checked
    except (OSError, Refused) as error:
        checked.wrong(HEAD_FILE, str(getattr(error, "what", error)))
        return checked
    found = check_installed(folder, documents)
    found.bytes += checked.bytes
    return found


def _with_head(cache: DocumentCache, head: bytes) -> Documents | None:
    cache.put(digest(head), head)
    return cached_documents(cache, digest(head))


def check_installed(folder: Path, documents: Documents) -> Checked:
    """Read every file of an installed version. Blocks."""
    checked = Checked()
    try:
        head = (folder / HEAD_FILE).read_bytes()
    except OSError as error:
        checked.wrong(HEAD_FILE, str(error))
        return checked
    if head != documents.head_bytes:
        checked.wrong(HEAD_FILE, f"its digest is {digest(head)}, signed is {documents.head_digest}")
        return checked
    face = node_face(documents)
    for number, each in enumerate(face.files):
        path = folder / each.name
        try:
            size = path.stat().st_size
            if size != each.size:
                checked.wrong(each.name, f"it has {size} bytes, signed are {each.size}")
            elif each.digest is not None:
                found = file_digest(path)
                if found != each.digest:
                    checked.wrong(each.name, f"its digest is {found}, signed is {each.digest}")
            else:
                for reason in _wrong_segments(path, documents, face, number):
                    checked.wrong(each.name, reason)
            checked.bytes += size
        except OSError as error:
            checked.wrong(each.name, str(error))
    return checked


def _wrong_segments(path: Path, documents: Documents, face: Face, file: int) -> Iterator[str]:
    start = face.files[file].start
    with path.open("rb") as opened:
        if opened.read(len(start)) != start:
            yield "its header is not the one that the layout makes"
        for number, places in face.places.items():
            for place in places:
                if place.file == file:
                    data = os.pread(opened.fileno(), place.length, place.offset)
                    if digest(data) != documents.table.rows[number].digest:
                        yield f"bytes {place.offset} to {place.offset + place.length - 1} are not as signed"


async def verify_store(store: Store, root: bytes, model: str, version: int) -> VerifyResult:
    """Fetch every pack of a version and decode every segment; nothing is kept but one pack at a time.

    Raises:
        UnknownModel, UnknownVersion, StoreErrors where the documents cannot be read at all; NotAuthentic.
    """
    with tempfile.TemporaryDirectory(prefix="syncd-verify-") as aside:
        trust = ModelTrust(store, model, Path(aside) / "trust", root)
        target = await version_target(trust, model, version, yanked_too=True)
        result = VerifyResult()
        try:
            documents = await read_documents(trust, DocumentCache(Path(aside) / "documents"), model, target)
        except Refused as error:
            result.add(
                Checked(bad=[{"what": "documents", "reason": error.what}]), model=model, version=version
            )
            return result
        for pack in documents.table.packs:
            result.add(await _check_pack(store, documents, pack), model=model, version=version)
        return result


async def _check_pack(store: Store, documents: Documents, pack: str) -> Checked:
    key = names.model_key(documents.head.model, names.document("packs", pack))
    try:
        data = (await store.get(key, limit=MAX_PACK_BYTES)).data
    except StoreError as error:
        return Checked(bad=[{"what": key, "reason": error.what}])
    return await asyncio.to_thread(_check_rows, documents, pack, key, data)


def _check_rows(documents: Documents, pack: str, key: str, data: bytes) -> Checked:
    checked = Checked(len(data))
    if digest(data) != pack:
        checked.wrong(key, f"its digest is {digest(data)}")
    for number, row in enumerate(documents.table.rows[: documents.table.segments]):
        if row.pack == pack:
            segment = documents.layout.segments[number]
            payload = memoryview(data)[row.offset : row.offset + row.encoded_length]
            try:
                verify_and_decode(payload, row, segment.dtype, bytearray(segment.length))
            except SyncdError as error:
                checked.wrong(key, error.what)
    return checked
