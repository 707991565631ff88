"""The folder store keeps the contract, between processes too, and what only a folder can get wrong."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from syncd.errors import (
    ObjectChanged,
    ObjectExists,
    ObjectMissing,
    StoreBroken,
    StoreDenied,
    StoreFull,
    StoreReadOnly,
    StoreUnreachable,
)
from syncd.store.base import Create, IfMatch, Replace, Store
from syncd.store.folder import FolderStore
from syncd.store.probe import probe
from tests.contract.store_contract import StoreContract
from tests.support.disks import after_power_cut, frozen, remount_read_only, unmount
from tests.support.servers import wait_until

SPAWN = multiprocessing.get_context("spawn")


class TestFolder(StoreContract):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[Store]:
        store = FolderStore(tmp_path / "store", create=True)
        yield store
        await store.aclose()

    @pytest.fixture
    def writer(self, store: Store) -> Store:
        return store


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def folder(root: Path) -> FolderStore:
    return FolderStore(root, create=True)


def everything(root: Path) -> dict[str, bytes | str]:
    """Each path below `root` with its content, link target or kind, lock files aside: to show that nothing changed."""
    found: dict[str, bytes | str] = {}
    for path in sorted(root.rglob("*")):
        if path.name == ".lock":
            continue
        name = str(path.relative_to(root))
        found[name] = (
            str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else "other"
        )
    return found


# Between processes


def _create_races(root: str, me: int) -> list[int]:
    async def race() -> list[int]:
        store, won = FolderStore(Path(root)), []
        for i in range(10):
            with contextlib.suppress(ObjectExists):
                await store.put(f"race/{i}", f"{me}".encode(), mode=Create())
                won.append(i)
        return won

    return asyncio.run(race())


def _increment(root: str, times: int) -> None:
    async def count() -> None:
        store, done = FolderStore(Path(root)), 0
        while done < times:
            seen = await store.get("counter", limit=99)
            with contextlib.suppress(ObjectChanged):
                await store.put("counter", str(int(seen.data) + 1).encode(), mode=IfMatch(seen.etag or ""))
                done += 1

    asyncio.run(count())


def test_of_racing_processes_exactly_one_creates_each_object(folder: FolderStore, root: Path) -> None:
    with SPAWN.Pool(4) as pool:
        won = pool.starmap(_create_races, [(str(root), me) for me in range(8)], chunksize=1)
    assert sorted(i for each in won for i in each) == list(range(10))
    for me, each in enumerate(won):
        for i in each:
            assert (root / "race" / str(i)).read_bytes() == f"{me}".encode()


async def test_processes_that_compare_and_set_lose_no_increment(folder: FolderStore, root: Path) -> None:
    await folder.put("counter", b"0", mode=Create())
    with SPAWN.Pool(4) as pool:
        await asyncio.to_thread(pool.starmap, _increment, [(str(root), 10)] * 4, chunksize=1)
    assert (await folder.get("counter", limit=9)).data == b"40"


def _write_for_ever(root: str) -> None:
    async def write() -> None:
        store = FolderStore(Path(root))
        for i in range(10**9):
            await store.put(f"packs/{i}", i.to_bytes(8, "big") * 100_000, mode=Create())
            await store.put("newest", i.to_bytes(8, "big") * 100_000, mode=Replace())

    asyncio.run(write())


async def test_a_writer_killed_anywhere_leaves_whole_objects_only(folder: FolderStore, root: Path) -> None:
    for round_ in range(3):
        writer = SPAWN.Process(target=_write_for_ever, args=(str(root),))
        writer.start()
        enough = 3 + round_
        await asyncio.to_thread(wait_until, lambda: len(list(root.glob("packs/*"))) >= enough, 30, 0.003)  # noqa: B023
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        await asyncio.to_thread(writer.join)
        for info in [i async for i in folder.list("")]:
            data = (await folder.get(info.key, limit=1 << 20)).data
            assert data == data[:8] * 100_000, f"{info.key} is torn"
        shutil.rmtree(root / "packs")
    await folder.put("newest", b"still writable", mode=Replace())


# A root that is not there


async def test_a_missing_folder_is_unreachable_and_is_not_made(root: Path) -> None:
    store = FolderStore(root)
    await _refuses_everything(store)
    assert not root.exists()


async def test_an_empty_mount_point_is_unreachable_and_stays_empty(root: Path) -> None:
    root.mkdir()
    await _refuses_everything(FolderStore(root))
    assert list(root.iterdir()) == []


@pytest.mark.root
async def test_a_store_whose_disk_is_unmounted_is_unreachable_and_nothing_lands_below(
    small_disk: Path,
) -> None:
    (small_disk / "lost+found").rmdir()
    store = FolderStore(small_disk, create=True)
    await store.put("a", b"1", mode=Create())
    unmount(small_disk)
    await _refuses_everything(store)
    assert list(small_disk.iterdir()) == []


async def _refuses_everything(store: FolderStore) -> None:
    for asked in (store.get("a", limit=9), store.head("a"), store.get_range("a", 0, 1), store.delete("a")):
        with pytest.raises(StoreUnreachable, match="no store"):
            await asked
    for mode in (Create(), Replace(), IfMatch("x")):
        with pytest.raises(StoreUnreachable, match="no store"):
            await store.put("a/b", b"1", mode=mode)
    with pytest.raises(StoreUnreachable, match="no store"):
        await anext(aiter(store.list("")))


def test_creating_a_store_makes_its_folder_and_again_changes_nothing(root: Path) -> None:
    FolderStore(root / "deep" / "er", create=True)
    before = everything(root)
    FolderStore(root / "deep" / "er", create=True)
    assert everything(root) == before


# Links, pipes, folders in the wrong place


async def test_no_link_leads_out_of_the_store(folder: FolderStore, root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (root / "models").symlink_to(outside)
    (root / "file").symlink_to(outside / "secret")
    before = everything(root), everything(outside)
    for key in ("models/secret", "file"):
        for asked in (folder.get(key, limit=99), folder.head(key), folder.get_range(key, 0, 1)):
            with pytest.raises(StoreBroken, match=r"link|Not a directory"):
                await asked
    with pytest.raises(StoreBroken):
        await folder.put("models/new", b"1", mode=Create())
    with pytest.raises(StoreBroken):
        await folder.put("models/secret", b"1", mode=Replace())
    with pytest.raises(StoreBroken):
        await folder.delete("models/secret")
    with pytest.raises(ObjectExists):
        await folder.put("file", b"1", mode=Create())
    assert [i.key async for i in folder.list("")] == []
    assert (everything(root), everything(outside)) == before


async def test_a_root_that_is_itself_a_link_is_followed(
    folder: FolderStore, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(root)
    await FolderStore(tmp_path / "link").put("a", b"1", mode=Create())
    assert (await folder.get("a", limit=9)).data == b"1"


async def test_a_pipe_or_a_file_in_the_wrong_place_does_not_hang_or_harm(
    folder: FolderStore, root: Path
) -> None:
    os.mkfifo(root / "pipe")
    await folder.put("file", b"1", mode=Create())
    for key in ("pipe",):
        with pytest.raises(StoreBroken, match=key):
            async with asyncio.timeout(5):
                await folder.get(key, limit=9)
    with pytest.raises(StoreBroken, match="file/below"):
        await folder.put("file/below", b"1", mode=Create())
    assert (await folder.get("file", limit=9)).data == b"1"


# What the operating system says


@pytest.mark.root
async def test_a_full_disk_is_told_and_loses_nothing(small_disk: Path) -> None:
    store = FolderStore(small_disk / "store", create=True)
    etag = await store.put("pointer", b"old", mode=Create())

    async def fill() -> None:
        for i in range(64):
            await store.put(f"packs/{i}", os.urandom(1 << 20), mode=Create())

    with pytest.raises(StoreFull, match="No space left"):
        await fill()
    whole = {i.key async for i in store.list("packs")}
    with pytest.raises(StoreFull):
        await store.put("pointer", os.urandom(2 << 20), mode=IfMatch(etag or ""))
    assert (await store.get("pointer", limit=9)).data == b"old"
    assert {i.key async for i in store.list("packs")} == whole
    assert not list(small_disk.rglob(".part-*")), "what did not fit was left behind"
    await store.delete(whole.pop())
    await store.put("packs/again", os.urandom(1 << 19), mode=Create())


@pytest.mark.root
async def test_a_read_only_disk_is_read_only_to_the_probe_too(small_disk: Path) -> None:
    store = FolderStore(small_disk / "store", create=True)
    await store.put("a", b"1", mode=Create())
    remount_read_only(small_disk)
    with pytest.raises(StoreReadOnly, match="Read-only"):
        await store.put("b", b"1", mode=Create())
    with pytest.raises(StoreReadOnly):
        await probe(store)
    assert (await store.get("a", limit=9)).data == b"1"


@pytest.mark.root
async def test_what_a_put_returned_from_survives_a_power_cut(small_disk: Path) -> None:
    store = FolderStore(small_disk / "store", create=True)
    for i in range(5):
        await store.put(f"deep/er/{i}", f"pack {i}".encode() * 1000, mode=Create())
        await store.put("pointer", f"{i}".encode(), mode=Replace())
    (small_disk / "unsynced").write_bytes(b"x" * 1000)
    with after_power_cut(small_disk.with_name("image")) as survived:
        after = FolderStore(survived / "store")
        for i in range(5):
            assert (await after.get(f"deep/er/{i}", limit=9000)).data == f"pack {i}".encode() * 1000
        assert (await after.get("pointer", limit=9)).data == b"4"
        lost = survived / "unsynced"
        assert not lost.exists() or lost.read_bytes() != b"x" * 1000, "this disk loses nothing: no proof"


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """This process as a user without rights, where it is root."""
    was = os.geteuid()
    if was == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        if was == 0:
            os.seteuid(0)


async def test_a_folder_of_another_user_is_denied_by_name() -> None:
    with tempfile.TemporaryDirectory() as top:
        Path(top).chmod(0o755)
        root = Path(top) / "store"
        store = FolderStore(root, create=True)
        await store.put("seen/a", b"1", mode=Create())
        await store.put("hidden", b"1", mode=Create())
        (root / "hidden").chmod(0o000)
        for path in (root, root / "seen"):
            path.chmod(0o555)
        before = sorted(p.name for p in root.rglob("*"))
        with nobody():
            assert (await store.get("seen/a", limit=9)).data == b"1"
            with pytest.raises(StoreDenied, match=r"hidden.*Permission denied"):
                await store.get("hidden", limit=9)
            with pytest.raises(StoreDenied, match="seen/b"):
                await store.put("seen/b", b"1", mode=Create())
            with pytest.raises(StoreDenied, match="seen/a"):
                await store.delete("seen/a")
            with pytest.raises(StoreDenied):
                await probe(store)
        assert sorted(p.name for p in root.rglob("*") if p.name != ".lock") == [
            n for n in before if n != ".lock"
        ]
        for path in (root, root / "seen"):
            path.chmod(0o755)


async def test_new_folders_and_files_take_their_permissions_from_the_root(
    folder: FolderStore, root: Path
) -> None:
    for mode, file_mode in ((0o2775, 0o664), (0o700, 0o600), (0o755, 0o644)):
        root.chmod(mode)
        key = f"m{mode:o}/deep/object"
        await folder.put(key, b"1", mode=Create())
        assert (root / key).stat().st_mode & 0o7777 == file_mode
        assert (root / key).parent.stat().st_mode & 0o7777 == mode
        assert (root / key).parent.parent.stat().st_mode & 0o7777 == mode


async def test_a_held_lock_is_waited_for_with_a_limit(
    folder: FolderStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    monkeypatch.setattr("syncd.store.descriptors.LOCK_WITHIN_S", 0.2)
    etag = await folder.put("a", b"1", mode=Replace())
    with (root / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StoreUnreachable, match="lock"):
            await folder.put("a", b"2", mode=IfMatch(etag or ""))
        await folder.put("b", b"created without the lock", mode=Create())
    assert (await folder.get("a", limit=9)).data == b"1"


async def test_what_killed_puts_left_aside_is_swept_after_a_day(root: Path, folder: FolderStore) -> None:
    old, young = root / ".part-old", root / ".part-young"
    for part in (old, young):
        part.write_bytes(b"half")
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    await FolderStore(root).put("a", b"1", mode=Create())
    assert not old.exists()
    assert young.exists()


async def test_what_is_no_object_is_not_listed(root: Path, folder: FolderStore) -> None:
    await folder.put("a/b", b"1", mode=Create())
    (root / "a" / "my notes.txt").write_text("not ours")
    (root / "a" / ".hidden").write_text("not ours")
    assert [i.key async for i in folder.list("")] == ["a/b"]


async def test_a_refused_compare_and_set_makes_no_folder(root: Path, folder: FolderStore) -> None:
    before = everything(root)
    with pytest.raises(ObjectChanged):
        await folder.put("not/there/yet", b"1", mode=IfMatch("x"))
    assert everything(root) == before


@pytest.mark.root
async def test_a_disk_that_hangs_is_told_and_the_loop_goes_on(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FolderStore(small_disk / "store", create=True)
    with frozen(small_disk):
        monkeypatch.setattr("syncd.store.folder.IO_WITHIN_S", 0.3)
        with pytest.raises(StoreUnreachable, match="hangs"):
            await store.put("a", b"1", mode=Create())
        monkeypatch.undo()
    async with asyncio.timeout(20):
        while [i.key async for i in store.list("")] != ["a"]:  # noqa: ASYNC110 - a disk has no event
            await asyncio.sleep(0.02)


async def test_an_etag_is_the_content_so_a_copied_store_has_the_same(folder: FolderStore, root: Path) -> None:
    etag = await folder.put("a", b"1", mode=Create())
    shutil.copytree(root, root.with_name("copy"))
    copy = FolderStore(root.with_name("copy"))
    assert await copy.get_if_changed("a", etag, limit=9) is None
    await copy.put("a", b"2", mode=IfMatch(etag or ""))
    with pytest.raises(ObjectMissing):
        await copy.head("b")
