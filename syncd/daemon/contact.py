"""A store that remembers when it last answered and how far its clock is from ours: for `/v1/status`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from syncd.errors import StoreBroken, StoreError, StoreUnreachable
from syncd.store.base import Blob, Capabilities, Mode, ObjectInfo, Store


@dataclass
class Contact:
    """What is known of the store: shared by every connection to it. Times are Unix seconds."""

    reachable: bool | None = None
    last_contact: float | None = None
    clock_skew_s: float | None = None


class ObservedStore:
    """Passes every call on and looks at how it ended; a refusal is an answer too."""

    def __init__(self, store: Store, contact: Contact) -> None:
        self._store = store
        self.contact = contact

    @property
    def url(self) -> str:
        return self._store.url

    @property
    def capabilities(self) -> Capabilities:
        return self._store.capabilities

    @property
    def wire_bytes(self) -> int:
        return self._store.wire_bytes

    @property
    def requests(self) -> int:
        return self._store.requests

    @contextmanager
    def _observed(self) -> Iterator[None]:
        try:
            yield
        except (StoreUnreachable, StoreBroken):
            self.contact.reachable = False
            raise
        except StoreError:
            self._answered()
            raise
        self._answered()

    def _answered(self) -> None:
        self.contact.reachable = True
        self.contact.last_contact = time.time()

    def _clock(self, blob: Blob | None) -> None:
        if blob is not None and blob.server_date is not None:
            self.contact.clock_skew_s = round(blob.server_date - time.time(), 1)

    async def get(self, key: str, *, limit: int) -> Blob:
        with self._observed():
            blob = await self._store.get(key, limit=limit)
        self._clock(blob)
        return blob

    async def get_if_changed(self, key: str, etag: str | None, *, limit: int) -> Blob | None:
        with self._observed():
            blob = await self._store.get_if_changed(key, etag, limit=limit)
        self._clock(blob)
        return blob

    async def get_range(self, key: str, start: int, length: int) -> bytes | memoryview:
        with self._observed():
            return await self._store.get_range(key, start, length)

    async def head(self, key: str) -> ObjectInfo:
        with self._observed():
            return await self._store.head(key)

    async def put(self, key: str, data: bytes, *, mode: Mode) -> str | None:
        with self._observed():
            return await self._store.put(key, data, mode=mode)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        with self._observed():
            async for each in self._store.list(prefix):
                yield each

    async def delete(self, key: str) -> None:
        with self._observed():
            await self._store.delete(key)

    async def aclose(self) -> None:
        await self._store.aclose()
