"""Lends a store to code that blocks: python-tuf and other synchronous work run in a thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Coroutine
from typing import Any, TypeVar

from syncd.errors import StoreUnreachable
from syncd.store.base import Blob, Mode, ObjectInfo, Store

T = TypeVar("T")


class BlockingStore:
    """The store's calls for any thread but the loop's own, each with a time limit. Raises what the store raises."""

    def __init__(self, store: Store, loop: asyncio.AbstractEventLoop, *, timeout_s: float = 120.0) -> None:
        self.store = store
        self._loop = loop
        self._timeout_s = timeout_s

    def get(self, key: str, limit: int) -> Blob:
        return self._wait(self.store.get(key, limit=limit), key)

    def get_if_changed(self, key: str, etag: str | None, limit: int) -> Blob | None:
        return self._wait(self.store.get_if_changed(key, etag, limit=limit), key)

    def get_range(self, key: str, start: int, length: int) -> bytes | memoryview:
        return self._wait(self.store.get_range(key, start, length), key)

    def head(self, key: str) -> ObjectInfo:
        return self._wait(self.store.head(key), key)

    def put(self, key: str, data: bytes, *, mode: Mode) -> str | None:
        return self._wait(self.store.put(key, data, mode=mode), key)

    def _wait(self, call: Coroutine[Any, Any, T], key: str) -> T:
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is self._loop:
            call.close()
            raise RuntimeError("a blocking store would wait for its own loop: call it from another thread")
        future = asyncio.run_coroutine_threadsafe(call, self._loop)
        try:
            return future.result(self._timeout_s)
        except concurrent.futures.TimeoutError as error:
            future.cancel()
            raise StoreUnreachable(
                f"no answer about {key} within {self._timeout_s:.0f} s", store=self.store.url, key=key
            ) from error
