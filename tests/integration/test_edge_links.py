"""The edge on slow, failing and real remote stores: what is in flight, what is given up, what is tried again."""

import asyncio
import shutil

import pytest

from syncd.config import StoreSection
from syncd.edge.fetch import MAX_IN_FLIGHT_BYTES, MAX_RANGES
from syncd.edge.transitions import MAX_REPLANS, State
from syncd.errors import StoreUnreachable
from syncd.store.base import Create
from syncd.store.open import open_store
from tests.support.edge import assert_serves, edge
from tests.support.published import Content, fresh_tensors, published_store, tensors
from tests.support.signed_store import WatchedStore, open_folder


class Held(WatchedStore):
    """A store whose ranges wait until the test opens it; `in_flight` and `most` count them and their bytes."""

    def __init__(self, inner):
        super().__init__(inner)
        self.open = asyncio.Event()
        self.failures = 0
        self.in_flight = self.most = self.bytes_in_flight = self.most_bytes = 0

    async def get_range(self, key, start, length):
        self.in_flight += 1
        self.bytes_in_flight += length
        self.most = max(self.most, self.in_flight)
        self.most_bytes = max(self.most_bytes, self.bytes_in_flight)
        try:
            await self.open.wait()
            if self.failures:
                self.failures -= 1
                raise StoreUnreachable("the link dropped")
            return await self.inner.get_range(key, start, length)
        finally:
            self.in_flight -= 1
            self.bytes_in_flight -= length


@pytest.fixture
async def published(tmp_path):
    store = await published_store(tmp_path / "pub")
    yield store
    await store.signed.store.aclose()


@pytest.fixture
async def held(published):
    store = Held(open_folder(published.url))
    yield store
    await store.aclose()


async def test_eight_ranges_are_in_flight_and_never_more_than_64_mib(published, tmp_path, held):
    await published.publish(Content(fresh_tensors(1, megabytes=48)), limit=4 << 20)
    async with edge(published, tmp_path / "node", held) as it:
        await it.until(lambda: held.in_flight == MAX_RANGES)
        held.open.set()
        await it.serves(1)
    assert held.most == MAX_RANGES
    assert held.most_bytes <= MAX_IN_FLIGHT_BYTES


async def test_a_link_that_drops_ranges_costs_those_ranges_and_not_the_download(published, tmp_path, held):
    await published.publish(Content(fresh_tensors(1, megabytes=8)), limit=1 << 20)
    held.failures = 4
    held.open.set()
    async with edge(published, tmp_path / "node", held) as it:
        await it.serves(1)
        assert it.follow.standing.failures == 0


async def test_releases_faster_than_the_link_starve_nobody(published, tmp_path, held):
    await published.publish(Content(fresh_tensors(1)))
    async with edge(published, tmp_path / "node", held) as it:
        await it.until(lambda: held.in_flight)
        await published.publish(Content(fresh_tensors(2)))
        it.follow.poll_now()
        await it.until(lambda: it.follow.standing.target and it.follow.standing.target.version == 2)
        await it.until(lambda: held.in_flight)
        await published.publish(Content(fresh_tensors(3)))
        await it.polled()
        assert (it.state, it.follow.standing.target.version) == (State.FETCHING, 2)
        held.open.set()
        await it.serves(3)
        assert it.folder.versions() == [2, 3]
        assert_serves(it.folder, fresh_tensors(3))


async def test_an_edge_that_ends_in_the_middle_of_a_download_leaves_no_task_and_goes_on_where_it_was(
    published, tmp_path, held
):
    await published.publish(Content(fresh_tensors(1)))
    before = asyncio.all_tasks()
    async with edge(published, tmp_path / "node", held) as it:
        await it.until(lambda: held.in_flight)
    assert asyncio.all_tasks() == before
    assert held.in_flight == 0
    held.open.set()
    async with edge(published, tmp_path / "node", held) as it:
        await it.serves(1)


async def test_something_else_in_the_place_of_a_link_is_told_and_mended_by_its_removal(published, tmp_path):
    await published.publish(Content(tensors(1)))
    async with edge(published, tmp_path / "node") as it:
        await it.serves(1)
        (it.folder.path / "current").unlink()
        (it.folder.path / "current").write_text("a file")
        await published.publish(Content(tensors(2)))
        it.follow.poll_now()
        await it.until(lambda: it.follow.last_error)
        assert it.follow.last_error["code"] == "document-invalid"
        assert not it.task.done()
    async with edge(published, tmp_path / "node") as it:
        await it.until(lambda: it.follow.last_poll and it.follow.last_error)
        (it.folder.path / "current").unlink()
        await it.serves(2)


@pytest.mark.debian("nginx")
async def test_it_follows_a_plain_http_server(published, tmp_path, nginx):
    await published.publish(Content(tensors(1)))
    shown = nginx.root / "fleet-edge"
    shutil.copytree(published.url, shown)
    store = open_store(StoreSection(url=f"{nginx.url}/fleet-edge"))
    try:
        async with edge(published, tmp_path / "node", store) as it:
            await it.serves(1)
            assert_serves(it.folder, tensors(1))
            assert it.follow.wire_bytes <= store.wire_bytes
    finally:
        await store.aclose()


async def test_it_follows_an_s3_server(published, tmp_path, s3):
    await published.publish(Content(fresh_tensors(1, megabytes=20)))
    store = open_store(s3.section("edge"))
    try:
        for path in sorted(published.url.rglob("*")):
            name = path.relative_to(published.url).as_posix()
            if path.is_file() and not path.name.startswith("."):
                await store.put(name, path.read_bytes(), mode=Create())
        async with edge(published, tmp_path / "node", store) as it:
            await it.serves(1)
            assert_serves(it.folder, fresh_tensors(1, megabytes=20))
    finally:
        await store.aclose()


async def test_held_in_a_download_it_stops_at_once_and_resumed_it_goes_on_with_what_it_has(
    published, tmp_path, held
):
    await published.publish(Content(fresh_tensors(1, megabytes=8)), limit=1 << 20)
    async with edge(published, tmp_path / "node", held) as it:
        await it.until(lambda: held.in_flight > 0)
        await it.follow.obey("hold", None, "uid 0")
        await it.until(lambda: it.state is State.WAITING)
        assert (held.in_flight, it.folder.versions()) == (0, [])
        held.open.set()
        await it.polled()
        assert (it.state, it.follow.snapshot()["progress"]) == (State.WAITING, None)
        await it.follow.obey("resume", None, "uid 0")
        await it.serves(1)


async def test_pinned_in_a_download_of_another_it_fetches_the_pinned_one(published, tmp_path, held):
    for seed in (1, 2):
        await published.publish(Content(fresh_tensors(seed, megabytes=8)), limit=1 << 20)
    async with edge(published, tmp_path / "node", held) as it:
        await it.until(lambda: held.in_flight > 0)
        assert it.follow.standing.target.version == 2
        it.follow.standing.replans = MAX_REPLANS  # releases may not give up one more download; a person may
        await it.follow.obey("pin", 1, "uid 0")
        await it.until(lambda: it.follow.standing.target.version == 1)
        held.open.set()
        await it.serves(1)
        assert it.folder.versions() == [1]
