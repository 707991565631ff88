"""What tests of the publisher share: real checkpoints, a real store, reading a version back by the formats alone."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from syncd.artifact.head import Head
from syncd.artifact.index import Index
from syncd.artifact.layout import Layout
from syncd.artifact.pack import parse_pack
from syncd.artifact.segment import verify_and_decode
from syncd.artifact.table import SegmentTable
from syncd.config import PublishSection
from syncd.publisher.pipeline import Publisher
from syncd.publisher.publish import PublishResult, publish
from syncd.state.db import Database
from syncd.store.base import Store
from tests.support.signed_store import SignedStore, make_signed_store

MODEL = "m"
WITHIN_S = 60.0


def network(seed: int = 0, width: int = 700) -> torch.nn.Module:
    """A small net with large and small tensors, integer buffers and tied weights."""
    torch.manual_seed(seed)
    net = torch.nn.Sequential(
        torch.nn.Linear(64, width),
        torch.nn.BatchNorm1d(width),
        torch.nn.Linear(width, width),
        torch.nn.Linear(width, 10),
    )
    net.train()
    net(torch.randn(8, 64)).sum().backward()
    return net


def save_checkpoint(
    path: Path, *, seed: int = 0, epoch: int = 1, head_only: bool = False, **more: Any
) -> Path:
    """What a training script writes: model, optimizer, epoch. head_only: the body is that of seed 0."""
    net = network(0 if head_only else seed)
    if head_only:
        torch.manual_seed(seed)
        torch.nn.init.normal_(net[3].weight)
    optimizer = torch.optim.AdamW(net.parameters())
    optimizer.step()
    aside = path.with_name(f"{path.name}.tmp")
    torch.save(
        {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch, **more}, aside
    )
    aside.replace(path)
    return path


@dataclass
class Publishing:
    """A signed folder store, a publisher's state, and a training folder."""

    signed: SignedStore
    base: Path
    db: Database

    @property
    def runs(self) -> Path:
        folder = self.base / "runs"
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def model_folder(self) -> Path:
        return self.signed.folder / "models" / MODEL

    def section(self, **more: Any) -> PublishSection:
        given = {"model": MODEL, "watch": self.runs, "settle": "0s", "rescan": "200ms", **more}
        return PublishSection.model_validate(given)

    async def publish(
        self, path: Path, *, section: Mapping[str, Any] | None = None, **more: Any
    ) -> PublishResult:
        return await publish(
            path,
            section=self.section(**(section or {})),
            store=self.signed.store,
            trust_root=self.signed.root,
            keys=self.signed.keys,
            db=self.db,
            **more,
        )

    def packs(self) -> list[str]:
        folder = self.model_folder / "packs"
        return sorted(path.name for path in folder.glob("[!.]*")) if folder.is_dir() else []

    async def index(self) -> Index:
        return (await self.signed.repository(MODEL)).index

    def head(self, version: int) -> Head:
        return Head.parse((self.model_folder / "versions" / str(version) / "head.json").read_bytes())


async def make_publishing(base: Path) -> Publishing:
    signed = await make_signed_store(base)
    await signed.add_model(MODEL)
    state = base / "state"
    state.mkdir()
    return Publishing(signed, base, Database(state / "state.db"))


@dataclass
class ReadBack:
    """A version as a reader without any of our machinery finds it: every digest checked."""

    head: Head
    layout: Layout
    table: SegmentTable
    segments: list[bytes]

    def file(self, number: int) -> bytes:
        spans = self.layout.files[number].spans
        return b"".join(
            self.segments[span.segment][span.offset : span.offset + span.length] for span in spans
        )

    def files(self) -> dict[str, bytes]:
        return {entry.path: self.file(number) for number, entry in enumerate(self.head.files)}

    def tensor(self, name: str) -> bytes:
        entry = next(each for each in self.layout.tensors if each.name == name)
        return b"".join(
            self.segments[span.segment][span.offset : span.offset + span.length]
            for span in self.layout.tensor_spans(entry)
        )


def read_back(model_folder: Path, version: int) -> ReadBack:
    """Read a version out of a folder store, checking every digest and that each pack's footer says the same."""
    head = Head.parse((model_folder / "versions" / str(version) / "head.json").read_bytes())
    layout = Layout.parse(_document(model_folder / "layouts", head.layout.digest))
    table = SegmentTable.parse(_document(model_folder / "tables", head.table.digest), len(layout.segments))
    packs = {pack: _document(model_folder / "packs", pack) for pack in table.packs}
    footers = {pack: {row.row(pack) for row in parse_pack(data)} for pack, data in packs.items()}
    segments = []
    for entry, row in zip(layout.segments, table.rows, strict=True):
        assert row in footers[row.pack]
        out = bytearray(entry.length)
        verify_and_decode(
            packs[row.pack][row.offset : row.offset + row.encoded_length], row, entry.dtype, out
        )
        segments.append(bytes(out))
    found = ReadBack(head, layout, table, segments)
    for number, file in enumerate(head.files):
        data = found.file(number)
        assert len(data) == file.size
        assert f"sha256:{hashlib.sha256(data).hexdigest()}" == file.digest
    return found


def _document(folder: Path, name: str) -> bytes:
    data = (folder / name.removeprefix("sha256:")).read_bytes()
    assert f"sha256:{hashlib.sha256(data).hexdigest()}" == name
    return data


def make_publisher(publishing: Publishing, store: Store | None = None, **section: Any) -> Publisher:
    return Publisher(
        publishing.section(**section),
        store=store or publishing.signed.store,
        trust_root=publishing.signed.root,
        keys=publishing.signed.keys,
        db=publishing.db,
        folder=publishing.base / "state" / "trust",
    )


@contextlib.asynccontextmanager
async def running(publisher: Publisher) -> AsyncIterator[asyncio.Event]:
    wake = asyncio.Event()
    task = asyncio.create_task(publisher.run(wake))
    try:
        yield wake
        if task.done():
            task.result()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait_for(task, 20)


async def until(condition: Callable[[], bool], publisher: Publisher) -> None:
    """Look every 20 ms until `condition` holds; what the publisher says of itself is told if it never does."""
    end = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < end, publisher.snapshot()
        await asyncio.sleep(0.02)


def idle_at(publisher: Publisher, version: int) -> Callable[[], bool]:
    def holds() -> bool:
        told = publisher.snapshot()
        return told["last_version"] == version and not told["pending"] and told["state"] == "idle"

    return holds


def stands_still_at(publisher: Publisher, version: int | None) -> Callable[[], bool]:
    def holds() -> bool:
        told = publisher.snapshot()
        return told["state"] in ("idle", "waiting") and told["last_version"] == version

    return holds
