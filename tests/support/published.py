"""Signed, published versions in a folder store, made from a few tensors: what the edge's tests fetch."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from syncd.artifact import codecs
from syncd.artifact.head import DocumentRef, FileEntry, Head
from syncd.artifact.layout import FileSource, SegmentCut, TensorSource, cut
from syncd.artifact.pack import Pack, PackWriter
from syncd.artifact.segment import Row, digest
from syncd.artifact.table import SegmentTable
from syncd.publisher.commit import open_model
from tests.support.signed_store import SignedStore, make_signed_store

DTYPES = {"float32": "F32", "float16": "F16", "float64": "F64", "int64": "I64", "uint8": "U8"}


@dataclass
class Content:
    """A checkpoint in memory: one file of tensors with a remainder (its training state), and side files."""

    tensors: Mapping[str, np.ndarray]
    training: bytes = b""
    side: Mapping[str, bytes] = field(default_factory=dict)
    name: str = "step.bin"

    @property
    def file(self) -> bytes:
        return b"".join(each.tobytes() for each in self.tensors.values()) + self.training

    @property
    def files(self) -> dict[str, bytes]:
        return {self.name: self.file, **self.side}


def tensors(seed: int, *, megabytes: float = 3.0) -> dict[str, np.ndarray]:
    """A model of one tensor above a segment's group limit, a small head, and counters; the head differs by seed."""
    base = np.random.default_rng(0)
    own = np.random.default_rng(seed)
    rows = max(1, int(megabytes * 2**20) // 4096)
    return {
        "body.weight": base.standard_normal((rows, 1024), dtype=np.float32),
        "head.weight": own.standard_normal((64, 1024), dtype=np.float32),
        "head.half": own.standard_normal((33,)).astype(np.float16),
        "steps": np.array([seed], dtype=np.int64),
    }


def fresh_tensors(seed: int, *, megabytes: float = 3.0) -> dict[str, np.ndarray]:
    """As `tensors`, with a body of its own too."""
    made = tensors(seed, megabytes=megabytes)
    made["body.weight"] = np.random.default_rng(seed).standard_normal(
        made["body.weight"].shape, dtype=np.float32
    )
    return made


@dataclass
class PublishedStore:
    """A signed store and the means to publish into it."""

    signed: SignedStore
    model: str = "m"

    @property
    def url(self) -> Path:
        return self.signed.folder

    @property
    def root_file(self) -> Path:
        path = self.signed.folder.parent / "root.json"
        path.write_bytes(self.signed.root)
        return path

    async def publish(
        self, content: Content, *, channel: str | None = "latest", limit: int = 16 << 20
    ) -> int:
        """Publish and release; returns the version. `limit` bounds the payload of a pack."""
        repository = await open_model(
            self.signed.store,
            self.model,
            self.signed.root,
            self.signed.keys,
            self.signed.folder.parent / "publisher" / self.model,
        )
        version = await repository.claim()
        documents, head = make_documents(self.model, version, content, limit)
        await repository.commit(version=version, head=head, documents=documents, channel=channel)
        return version

    async def promote(self, version: int, channel: str = "latest") -> None:
        repository = await open_model(
            self.signed.store,
            self.model,
            self.signed.root,
            self.signed.keys,
            self.signed.folder.parent / "publisher" / self.model,
        )
        await repository.promote(version, channel)

    def packs(self) -> list[Path]:
        return sorted((self.signed.folder / "models" / self.model / "packs").iterdir())


async def published_store(base: Path, model: str = "m") -> PublishedStore:
    base.mkdir(parents=True, exist_ok=True)
    signed = await make_signed_store(base)
    await signed.add_model(model)
    return PublishedStore(signed, model)


def make_documents(model: str, version: int, content: Content, limit: int) -> tuple[dict[str, bytes], bytes]:
    """Every object of a version by its name below the model's folder, and the head's bytes."""
    files = content.files
    sources, at = [], 0
    for name, array in content.tensors.items():
        sources.append(TensorSource(name, DTYPES[array.dtype.name], array.shape, None, True, (0, at)))
        at += array.nbytes
    layout, cuts = cut(sources, [FileSource(len(data)) for data in files.values()], {})
    packs, rows = _encode(cuts, list(files.values()), limit)
    table = SegmentTable(tuple(rows), len(rows)).to_bytes()
    layout_bytes = layout.to_bytes()
    head = Head(
        model=model,
        version=version,
        created_at="2026-11-24T22:40:54Z",
        checkpoint_kind="test",
        checkpoint_bytes=len(content.file),
        model_bytes=layout.model_bytes,
        training_state=bool(content.training),
        files=tuple(
            FileEntry(name, _use(content, name), len(data), digest(data)) for name, data in files.items()
        ),
        layout=DocumentRef(digest(layout_bytes), len(layout_bytes)),
        table=DocumentRef(digest(table), len(table)),
    ).to_bytes()
    named = {f"packs/{_hex(pack.data)}": pack.data for pack in packs}
    named |= {f"layouts/{_hex(layout_bytes)}": layout_bytes, f"tables/{_hex(table)}": table}
    return named, head


def _use(content: Content, name: str) -> str:
    return "side" if name in content.side else "model" if content.tensors else "training"


def _encode(cuts: Sequence[SegmentCut], files: Sequence[bytes], limit: int) -> tuple[list[Pack], list[Row]]:
    writer, packs, digests = PackWriter(limit), [], []
    for each in cuts:
        data = b"".join(
            files[piece.file][piece.offset : piece.offset + piece.length]
            for piece in each.pieces
            if piece.file is not None
        )
        digests.append(digest(data))
        if digests[-1] not in digests[:-1]:
            number, payload = codecs.encode_plain(data, each.dtype)
            packs.append(writer.add(digests[-1], number, bytes(payload), len(data)))
    packs.append(writer.finish())
    made = [pack for pack in packs if pack is not None]
    rows = {row.digest: row for pack in made for row in pack.rows}
    return made, [rows[each] for each in digests]


def _hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def publish_all(base: Path, contents: Sequence[Content]) -> PublishedStore:
    """A store with these versions, made on a loop of its own."""

    async def work() -> PublishedStore:
        store = await published_store(base)
        for each in contents:
            await store.publish(each)
        await store.signed.store.aclose()
        return store

    return asyncio.run(work())
