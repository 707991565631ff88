"""Journal, reservation, budget: what a download leans on."""

import asyncio

import pytest

from syncd.edge.budget import Budget
from syncd.edge.disk import check_room, open_reserved
from syncd.edge.journal import Journal
from syncd.errors import DiskFull


def test_a_journal_remembers_over_a_restart_and_a_torn_last_line_is_no_line(tmp_path):
    path = tmp_path / "journal"
    journal = Journal(path, "sha256:a model")
    journal.add([3, 1])
    journal.add([1, 12])
    journal.close()
    with path.open("ab") as file:
        file.write(b"7")  # killed within the write of "75\n"
    again = Journal(path, "sha256:a model")
    assert again.done == {1, 3, 12}
    again.add([75])
    again.close()
    assert Journal(path, "sha256:a model").done == {1, 3, 12, 75}


def test_a_journal_of_another_version_is_thrown_away(tmp_path):
    path = tmp_path / "journal"
    first = Journal(path, "sha256:a model")
    first.add([1])
    first.close()
    second = Journal(path, "sha256:b model")
    assert second.done == set()
    second.close()


def test_a_reservation_keeps_what_is_there_and_gives_the_file_its_size(tmp_path):
    path = tmp_path / "model"
    import os

    first = open_reserved(path, 1 << 20)
    os.pwrite(first, b"kept", 500_000)
    os.close(first)
    second = open_reserved(path, 1 << 20)
    assert os.pread(second, 4, 500_000) == b"kept"
    assert os.fstat(second).st_size == 1 << 20
    os.close(second)


def test_a_download_that_cannot_fit_is_refused_before_it_begins_and_leaves_no_file(tmp_path):
    with pytest.raises(DiskFull, match=f"{1 << 60} bytes are needed"):
        check_room(tmp_path, 1 << 60)
    with pytest.raises(DiskFull):
        open_reserved(tmp_path / "model", 1 << 60)
    assert list(tmp_path.iterdir()) == []


async def test_the_budget_lets_through_what_fits_and_one_that_never_would_alone():
    budget = Budget(10)
    await budget.take(6)
    waiting = asyncio.create_task(budget.take(5))
    large = asyncio.create_task(budget.take(50))
    await asyncio.sleep(0)
    assert not waiting.done()
    await budget.give(6)
    await asyncio.wait_for(waiting, 5)
    assert not large.done()
    await budget.give(5)
    await asyncio.wait_for(large, 5)
