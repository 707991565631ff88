"""What every store must do. A store inherits this and says how to open one; what it cannot do, it must refuse.

`store` is the store under test, empty at first. `writer` is a store over the same objects that can be written: the same
one where it can.
"""

from __future__ import annotations

import asyncio
import os
from functools import partial

import pytest

from syncd.errors import (
    KeyInvalid,
    ObjectChanged,
    ObjectExists,
    ObjectMissing,
    ObjectTooLarge,
    StoreBroken,
    StoreCannot,
    StoreReadOnly,
)
from syncd.store.base import MAX_OBJECT_BYTES, Create, IfMatch, Replace, Store

ODD_KEYS = (
    "",
    "/",
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    "../a",
    "a/../b",
    "a/./b",
    ".a",
    "a/.lock",
    "-a",
    "a b",
    "a\\b",
    "a\nb",
    "a\0b",
    "a?b",
    "a#b",
    "a%2e",
    "ä",
    "a/" * 300 + "a",
    "a" * 201,
    "C:",
    "~",
    "a*",
)


class StoreContract:
    """The tests; each runs against every store."""

    async def test_what_was_put_is_read_whole(self, store: Store, writer: Store) -> None:
        for key, data in (("a", b"1"), ("models/m.0_1-x/packs/00ff", os.urandom(70_000)), ("empty", b"")):
            await writer.put(key, data, mode=Create())
            assert (await store.get(key, limit=len(data))).data == data
            info = await store.head(key)
            assert (info.key, info.size) == (key, len(data))

    async def test_a_missing_object_is_told_as_missing(self, store: Store, writer: Store) -> None:
        await writer.put("folder/here", b"1", mode=Create())
        for key in ("nothing", "folder", "folder/none", "folder/here/below"):
            with pytest.raises(ObjectMissing, match=key):
                await store.get(key, limit=9)
            with pytest.raises(ObjectMissing, match=key):
                await store.head(key)
            with pytest.raises(ObjectMissing, match=key):
                await store.get_range(key, 0, 1)

    async def test_an_object_above_the_limit_is_not_taken(self, store: Store, writer: Store) -> None:
        await writer.put("big", bytes(100_000), mode=Create())
        before = store.wire_bytes
        for limit in (0, 1, 99_999):
            with pytest.raises(ObjectTooLarge, match=str(limit)):
                await store.get("big", limit=limit)
        assert store.wire_bytes - before < 100_000, (
            "bodies were read although they were known to be too large"
        )
        assert len((await store.get("big", limit=100_000)).data) == 100_000

    async def test_every_odd_key_is_refused_before_anything_is_asked(self, store: Store) -> None:
        before = store.requests
        for key in ODD_KEYS:
            for ask in (
                partial(store.get, key, limit=9),
                partial(store.get_if_changed, key, None, limit=9),
                partial(store.get_range, key, 0, 1),
                partial(store.head, key),
                partial(store.put, key, b"1", mode=Create()),
                partial(store.delete, key),
            ):
                with pytest.raises(KeyInvalid):
                    await ask()
        with pytest.raises(KeyInvalid):
            await anext(aiter(store.list("../etc")))
        assert store.requests == before

    async def test_ranges_are_exact_or_refused(self, store: Store, writer: Store) -> None:
        data = os.urandom(300_000)
        await writer.put("ranged", data, mode=Create())
        assert store.capabilities.ranges
        for start, length in ((0, 1), (1, 0), (0, len(data)), (299_999, 1), (1234, 200_000)):
            assert await store.get_range("ranged", start, length) == data[start : start + length]
        for start, length in ((0, len(data) + 1), (299_999, 2), (300_000, 1), (10**9, 5)):
            with pytest.raises(StoreBroken, match="ranged"):
                await store.get_range("ranged", start, length)

    async def test_sixteen_ranges_at_once_are_all_right(self, store: Store, writer: Store) -> None:
        data = os.urandom(1 << 20)
        await writer.put("ranged", data, mode=Create())
        part = len(data) // 16
        parts = await asyncio.gather(*(store.get_range("ranged", i * part, part) for i in range(16)))
        assert b"".join(parts) == data

    async def test_an_unchanged_object_costs_no_body(self, store: Store, writer: Store) -> None:
        await writer.put("polled", b"0" * 1000, mode=Create())
        etag = await self.settled_etag(store, "polled")
        before = store.wire_bytes, store.requests
        assert await store.get_if_changed("polled", etag, limit=1000) is None
        assert (store.wire_bytes, store.requests) == (before[0], before[1] + 1)
        await writer.put("polled", b"1" * 1000, mode=Replace())
        blob = await store.get_if_changed("polled", etag, limit=1000)
        assert blob is not None
        assert blob.data == b"1" * 1000
        assert blob.etag != etag
        assert await store.get_if_changed("polled", None, limit=1000) is not None
        with pytest.raises(ObjectMissing):
            await store.get_if_changed("gone", etag, limit=1000)
        with pytest.raises(ObjectTooLarge):
            await store.get_if_changed("polled", etag, limit=999)

    async def settled_etag(self, store: Store, key: str) -> str:
        """An ETag that may be remembered; a server whose ETags are seconds makes one wait for it."""
        async with asyncio.timeout(10):
            while True:
                blob = await store.get(key, limit=1 << 20)
                if blob.etag is not None:
                    return blob.etag
                await asyncio.sleep(0.05)

    async def test_a_pack_of_16_mib_travels_whole_and_is_counted(self, store: Store, writer: Store) -> None:
        data = os.urandom(16 << 20)
        await writer.put("packs/big", data, mode=Create())
        before = store.wire_bytes
        blob = await store.get("packs/big", limit=17 << 20)
        assert blob.data == data
        assert store.wire_bytes - before == len(data)

    async def test_more_than_a_put_takes_is_refused(self, store: Store) -> None:
        if not store.capabilities.write:
            await self.refuses(StoreReadOnly, store.put("big", b"", mode=Create()))
            return
        with pytest.raises(ObjectTooLarge):
            await store.put("big", bytes(MAX_OBJECT_BYTES + 1), mode=Create())
        with pytest.raises(ObjectMissing):
            await store.head("big")

    async def test_create_only_wins_once(self, store: Store, writer: Store) -> None:
        if not store.capabilities.create_only:
            await self.refuses(StoreReadOnly, store.put("once", b"1", mode=Create()))
            return
        await store.put("once", b"first", mode=Create())
        for data in (b"second", b"first"):
            with pytest.raises(ObjectExists, match="once"):
                await store.put("once", data, mode=Create())
        assert (await store.get("once", limit=9)).data == b"first"

    async def test_of_32_racing_creators_exactly_one_wins(self, store: Store) -> None:
        if not store.capabilities.create_only:
            await self.refuses(StoreReadOnly, store.put("race/claim", b"1", mode=Create()))
            return

        async def create(i: int) -> int | None:
            try:
                await store.put("race/claim", f"creator {i}".encode(), mode=Create())
            except ObjectExists:
                return None
            return i

        winners = [i for i in await asyncio.gather(*map(create, range(32))) if i is not None]
        assert len(winners) == 1
        assert (await store.get("race/claim", limit=99)).data == f"creator {winners[0]}".encode()

    async def test_compare_and_set_refuses_what_it_did_not_see(self, store: Store) -> None:
        if not store.capabilities.compare_and_set:
            await self.refuses(StoreReadOnly, store.put("set", b"1", mode=IfMatch('"x"')))
            return
        first = await store.put("set", b"first", mode=Create())
        assert first is not None
        second = await store.put("set", b"second", mode=IfMatch(first))
        assert second not in (None, first)
        with pytest.raises(ObjectChanged, match="set"):
            await store.put("set", b"third", mode=IfMatch(first))
        with pytest.raises(ObjectChanged):
            await store.put("nothing/there", b"third", mode=IfMatch(first))
        assert (await store.get("set", limit=9)).data == b"second"
        assert (await store.get("set", limit=9)).etag == second == (await store.head("set")).etag
        with pytest.raises(ObjectMissing):
            await store.head("nothing/there")

    async def test_twenty_writers_lose_no_increment(self, store: Store) -> None:
        if not store.capabilities.compare_and_set:
            await self.refuses(StoreReadOnly, store.put("counter", b"1", mode=IfMatch('"x"')))
            return
        await store.put("counter", b"0", mode=Create())

        async def increment() -> None:
            while True:
                seen = await store.get("counter", limit=9)
                assert seen.etag is not None
                try:
                    await store.put("counter", str(int(seen.data) + 1).encode(), mode=IfMatch(seen.etag))
                except ObjectChanged:
                    continue
                return

        async with asyncio.timeout(60):
            await asyncio.gather(*(increment() for _ in range(20)))
        assert (await store.get("counter", limit=9)).data == b"20"

    async def test_a_listing_holds_every_object_below_a_prefix_and_no_other(
        self, store: Store, writer: Store
    ) -> None:
        if not store.capabilities.list:
            await self.refuses(StoreCannot, anext(aiter(store.list(""))))
            return
        keys = {f"models/m/versions/{n}/head.json" for n in range(12)} | {"models/m2/claim", "fleet"}
        for key in keys:
            await writer.put(key, key.encode(), mode=Create())
        listed = {info.key: info async for info in store.list("")}
        assert set(listed) == keys
        assert all(info.size == len(key) and info.modified for key, info in listed.items())
        for prefix in ("models/m", "models/m/"):
            assert {i.key async for i in store.list(prefix)} == {k for k in keys if k.startswith("models/m/")}
        assert [i async for i in store.list("models/none")] == []
        assert [i async for i in store.list("model")] == []

    async def test_a_deleted_object_is_gone_and_a_missing_one_is_fine(
        self, store: Store, writer: Store
    ) -> None:
        await writer.put("a/b", b"1", mode=Create())
        if not store.capabilities.delete:
            await self.refuses(StoreReadOnly, store.delete("a/b"))
            assert (await store.get("a/b", limit=9)).data == b"1"
            return
        await store.delete("a/b")
        await store.delete("a/b")
        await store.delete("never/was")
        with pytest.raises(ObjectMissing):
            await store.get("a/b", limit=9)
        await store.put("a/b", b"2", mode=Create())

    async def test_a_cancelled_read_leaves_the_store_usable(self, store: Store, writer: Store) -> None:
        await writer.put("big", bytes(4 << 20), mode=Create())
        reads = [asyncio.create_task(store.get_range("big", 0, 4 << 20)) for _ in range(8)]
        await asyncio.sleep(0)
        for read in reads:
            read.cancel()
        await asyncio.gather(*reads, return_exceptions=True)
        assert len((await store.get("big", limit=4 << 20)).data) == 4 << 20

    async def refuses(self, error: type[Exception], asked: object) -> None:
        """What a store declares that it cannot do, it refuses by its name."""
        with pytest.raises(error):
            await asked  # type: ignore[misc]
