"""A store lent to threads: values and errors come through, and no wait is without a limit."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from syncd.config import StoreSection
from syncd.errors import ObjectMissing, StoreUnreachable
from syncd.store.base import Create
from syncd.store.blocking import BlockingStore
from syncd.store.folder import FolderStore
from syncd.store.http import HttpStore
from tests.support.faults import Fault, FaultServer


async def test_values_and_errors_reach_a_thread(tmp_path: Path) -> None:
    blocking = BlockingStore(FolderStore(tmp_path / "store", create=True), asyncio.get_running_loop())

    def work() -> None:
        etag = blocking.put("a", b"data", mode=Create())
        assert blocking.get("a", 9).data == b"data"
        assert blocking.get_range("a", 1, 2) == b"at"
        assert blocking.head("a").size == 4
        assert blocking.get_if_changed("a", etag, 9) is None
        with pytest.raises(ObjectMissing):
            blocking.get("b", 9)

    await asyncio.to_thread(work)


async def test_a_call_on_its_own_loop_is_refused_not_hung(tmp_path: Path) -> None:
    blocking = BlockingStore(FolderStore(tmp_path / "store", create=True), asyncio.get_running_loop())
    with pytest.raises(RuntimeError, match="another thread"):
        blocking.get("a", 9)


async def test_a_store_that_never_answers_is_given_up(tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "a").write_bytes(b"data")
    with FaultServer(tmp_path / "served") as server:
        server.fault = Fault.STALLED
        store = HttpStore(StoreSection(url=server.url))
        blocking = BlockingStore(store, asyncio.get_running_loop(), timeout_s=0.3)
        with pytest.raises(StoreUnreachable, match="no answer about a"):
            await asyncio.to_thread(blocking.get, "a", 9)
        await store.aclose()
