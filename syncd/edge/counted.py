"""A store as one follower of a model sees it: the same objects, counted apart where several share one store."""

from __future__ import annotations

from collections.abc import AsyncIterator

from syncd.store.base import Blob, Capabilities, Mode, ObjectInfo, Store


class Counted:
    """Hands everything on to `inner`; `wire_bytes` and `requests` count what was asked through this one alone."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner
        self.url = inner.url
        self.capabilities: Capabilities = inner.capabilities
        self.wire_bytes = 0
        self.requests = 0

    async def get(self, key: str, *, limit: int) -> Blob:
        """As the store's."""
        self.requests += 1
        blob = await self._inner.get(key, limit=limit)
        self.wire_bytes += len(blob.data)
        return blob

    async def get_if_changed(self, key: str, etag: str | None, *, limit: int) -> Blob | None:
        """As the store's."""
        self.requests += 1
        blob = await self._inner.get_if_changed(key, etag, limit=limit)
        self.wire_bytes += len(blob.data) if blob is not None else 0
        return blob

    async def get_range(self, key: str, start: int, length: int) -> bytes | memoryview:
        """As the store's."""
        self.requests += 1
        data = await self._inner.get_range(key, start, length)
        self.wire_bytes += len(data)
        return data

    async def head(self, key: str) -> ObjectInfo:
        """As the store's."""
        self.requests += 1
        return await self._inner.head(key)

    async def put(self, key: str, data: bytes, *, mode: Mode) -> str | None:
        """As the store's."""
        self.requests += 1
        return await self._inner.put(key, data, mode=mode)

    def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """As the store's."""
        self.requests += 1
        return self._inner.list(prefix)

    async def delete(self, key: str) -> None:
        """As the store's."""
        self.requests += 1
        await self._inner.delete(key)

    async def aclose(self) -> None:
        """Nothing: the store belongs to whoever opened it."""
