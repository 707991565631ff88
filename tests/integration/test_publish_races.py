"""Several publishers of one model at once: every checkpoint becomes a version, the channel ends on the newest."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from syncd.state.db import Database
from tests.support.publishing import MODEL, Publishing, make_publishing, read_back, save_checkpoint


async def test_racing_publishers_lose_nothing_and_the_channel_ends_on_the_highest_version(
    tmp_path: Path,
) -> None:
    publishing = await make_publishing(tmp_path)
    paths = [save_checkpoint(publishing.runs / f"{number}.pt", epoch=number) for number in range(4)]

    async def one(number: int) -> int | None:
        with Database(tmp_path / f"{number}.db") as db:
            own = Publishing(publishing.signed, publishing.base, db)
            return (await own.publish(paths[number], folder=tmp_path / f"own-{number}")).version

    async with asyncio.timeout(100):
        versions = await asyncio.gather(*(one(number) for number in range(4)))
    assert len(set(versions)) == 4
    repository = await publishing.signed.repository(MODEL)
    assert {each.version for each in repository.index.versions} == set(versions)
    released = repository.channels["latest"]
    assert released is not None
    assert released.version == max(version for version in versions if version)
    for number, version in enumerate(versions):
        assert version is not None
        found = read_back(publishing.model_folder, version)
        assert found.files() == {f"{number}.pt": paths[number].read_bytes()}


async def test_two_publishers_of_one_content_end_on_one_version(tmp_path: Path) -> None:
    publishing = await make_publishing(tmp_path)
    path = save_checkpoint(publishing.runs / "1.pt")
    copy = publishing.runs / "copy.pt"
    shutil.copy(path, copy)

    async def one(name: str, checkpoint: Path) -> tuple[int | None, bool]:
        with Database(tmp_path / f"{name}.db") as db:
            own = Publishing(publishing.signed, publishing.base, db)
            result = await own.publish(checkpoint, folder=tmp_path / f"own-{name}")
            return result.version, result.new

    async with asyncio.timeout(60):
        results = await asyncio.gather(one("a", path), one("b", copy))
    assert {version for version, _ in results} == {
        each.version for each in (await publishing.index()).versions
    }
    assert sorted(new for _, new in results) == [False, True]
