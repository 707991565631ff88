"""A small signed store on a real folder: fleet, models, versions; and what an attacker does to a copy of it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from syncd.artifact.head import DocumentRef, Head
from syncd.config import StoreSection
from syncd.publisher.commit import ModelRepository, Release, open_model
from syncd.store.base import Blob, Capabilities, Mode, ObjectInfo, Store
from syncd.store.open import open_store
from syncd.trust.founding import found_fleet, found_model
from syncd.trust.keys import fleet_key_path, generate_key, model_key_path
from syncd.trust.sign import ModelSigner
from syncd.trust.verify import ModelTrust


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def make_head(model: str, version: int, *, layout: bytes = b"layout", table: bytes = b"table") -> bytes:
    return Head(
        model=model,
        version=version,
        created_at="2026-11-24T22:40:54Z",
        checkpoint_kind="torch-zip",
        checkpoint_bytes=version,
        model_bytes=version,
        training_state=False,
        files=(),
        layout=DocumentRef(sha256(layout), len(layout)),
        table=DocumentRef(sha256(table), len(table)),
    ).to_bytes()


@dataclass
class SignedStore:
    """A folder store with a fleet; `store` belongs to the running loop."""

    folder: Path
    keys: Path
    store: Store
    root: bytes

    async def add_model(self, model: str, channels: tuple[str, ...] = ("latest", "stable")) -> None:
        from syncd.trust.keys import load_key

        signer = ModelSigner(model, generate_key(model_key_path(self.keys, model)))
        fleet = load_key(fleet_key_path(self.keys))
        assert await found_model(self.store, model, self.root, fleet, signer, channels)

    def trust(self, model: str, node: Path, *, store: Store | None = None, **more: Any) -> ModelTrust:
        return ModelTrust(store or self.store, model, node, self.root, **more)

    async def repository(self, model: str) -> ModelRepository:
        return await open_model(
            self.store, model, self.root, self.keys, self.folder.parent / "publisher" / model
        )

    async def release(self, model: str, channel: str | None = "latest", **more: Any) -> Release:
        repository = await self.repository(model)
        version = await repository.claim()
        head = make_head(model, version)
        documents = {
            f"layouts/{hashlib.sha256(b'layout').hexdigest()}": b"layout",
            f"tables/{hashlib.sha256(b'table').hexdigest()}": b"table",
        }
        return await repository.commit(
            version=version, head=head, documents=documents, channel=channel, **more
        )

    def path(self, model: str, name: str) -> Path:
        return self.folder / "models" / model / name

    def copy(self, name: str) -> Path:
        """A snapshot of the whole store, as an attacker may keep one."""
        to = self.folder.parent / name
        shutil.copytree(self.folder, to)
        return to


async def make_signed_store(base: Path) -> SignedStore:
    keys = base / "keys"
    fleet = await asyncio.to_thread(generate_key, fleet_key_path(keys))
    store = open_store(StoreSection(url=str(base / "store")), create=True)
    root = await found_fleet(store, fleet)
    return SignedStore(base / "store", keys, store, root)


def open_folder(folder: Path) -> Store:
    return open_store(StoreSection(url=str(folder)))


def disk(folder: Path) -> dict[str, Any]:
    """Everything below a folder: names, kinds, modes, contents, link targets, inodes and times."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(folder))] = (status.st_mode, status.st_ino, status.st_mtime_ns, content)
    return found


def rewrite(path: Path, change: Callable[[Any], None]) -> None:
    """Change a JSON file in place, as an attacker with write access to the store does."""
    data = json.loads(path.read_bytes())
    change(data)
    path.write_bytes(json.dumps(data, sort_keys=True, separators=(",", ":")).encode())


class WatchedStore:
    """A store that counts rounds: how many answers each request had to wait for, and what was asked.

    Requests that run side by side are one round. `replace` answers for a key in place of the store.
    """

    def __init__(self, inner: Store, replace: Mapping[str, bytes] | None = None) -> None:
        self.inner = inner
        self.replace = dict(replace or {})
        self.asked: list[str] = []
        self.bodies: list[str] = []
        self.rounds = 0
        self._answered = 0
        self._waiting = 0

    url = property(lambda self: self.inner.url)
    capabilities: Capabilities = property(lambda self: self.inner.capabilities)  # type: ignore[assignment]
    wire_bytes = property(lambda self: self.inner.wire_bytes)
    requests = property(lambda self: self.inner.requests)

    async def _one(self, key: str, call: Callable[[], Any]) -> Any:
        self.asked.append(key)
        if self._waiting == 0:
            self.rounds += 1
        self._waiting += 1
        try:
            await asyncio.sleep(0.02)  # as if the store were far: what is asked side by side overlaps
            answer = await call()
        finally:
            self._waiting -= 1
        if answer is not None:
            self.bodies.append(key)
        return answer

    async def get(self, key: str, *, limit: int) -> Blob:
        async def call() -> Blob:
            if key in self.replace:
                return Blob(self.replace[key], None)
            return await self.inner.get(key, limit=limit)

        blob: Blob = await self._one(key, call)
        return blob

    async def get_if_changed(self, key: str, etag: str | None, *, limit: int) -> Blob | None:
        async def call() -> Blob | None:
            if key in self.replace:
                return Blob(self.replace[key], None)
            return await self.inner.get_if_changed(key, etag, limit=limit)

        blob: Blob | None = await self._one(key, call)
        return blob

    async def get_range(self, key: str, start: int, length: int) -> bytes:
        data: bytes = await self._one(key, lambda: self.inner.get_range(key, start, length))
        return data

    async def head(self, key: str) -> ObjectInfo:
        info: ObjectInfo = await self._one(key, lambda: self.inner.head(key))
        return info

    async def put(self, key: str, data: bytes, *, mode: Mode) -> str | None:
        return await self.inner.put(key, data, mode=mode)

    def list(self, prefix: str) -> Any:
        return self.inner.list(prefix)

    async def delete(self, key: str) -> None:
        await self.inner.delete(key)

    async def aclose(self) -> None:
        await self.inner.aclose()


REFRESH = """
import asyncio, sys
from pathlib import Path
from syncd.trust.verify import ModelTrust
from tests.support.signed_store import open_folder

async def main(base):
    root = (base / "store/fleet/1.root.json").read_bytes()
    await ModelTrust(open_folder(base / "store"), "m", base / "node", root).refresh("latest")

asyncio.run(main(Path(sys.argv[1])))
"""
"""A program that refreshes BASE/node from BASE/store: python -c REFRESH BASE."""
