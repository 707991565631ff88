"""A state file that an earlier syncd wrote opens, is brought up to date, and nothing in it is lost."""

import shutil
from pathlib import Path

from syncd.edge.standing import Target, load_standing
from syncd.edge.transitions import State
from syncd.state import events, installed, published, wishes
from syncd.state.db import MIGRATIONS, Database

KEPT = Path(__file__).resolve().parents[2] / "fixtures/state"


def test_a_file_of_format_1_keeps_its_machine_quarantine_events_and_notes(tmp_path):
    shutil.copy(KEPT / "state-1.db", tmp_path / "state.db")
    for _ in range(2):  # the second opening finds nothing to bring up to date
        with Database(tmp_path / "state.db") as db:
            assert db.rows("PRAGMA user_version") == [(len(MIGRATIONS),)]
            assert db.rows("PRAGMA integrity_check") == [("ok",)]
            standing = load_standing(db, "m")
            assert standing.state is State.PROBATION
            assert standing.target == Target(2, f"sha256:{'b' * 64}", 701)
            assert (standing.attempt, standing.waits_for) == (4, "")
            assert set(installed.installed(db, "m")) == {1, 2}
            assert [each.version for each in installed.quarantine(db, "m")] == [3]
            assert [each.kind for each in events.since(db, 0)] == ["install", "swap"]
            assert published.by_content(db, "m", f"sha256:{'d' * 64}").version == 2
            assert db.note("publisher", "m") == {"version": 2}
            assert wishes.load(db, "m") == wishes.Wishes()


def test_each_format_ever_released_has_a_kept_file():
    kept = {each.name for each in KEPT.glob("state-*.db")}
    assert kept >= {f"state-{number}.db" for number in range(1, len(MIGRATIONS))}


def test_choices_and_approvals_survive_a_reopening(tmp_path):
    chosen = wishes.Wishes(
        held=True,
        pinned=installed.Installed(4, "sha256:a", 7),
        leaving=installed.Installed(5, "sha256:b", 8),
    )
    with Database(tmp_path / "state.db") as db:
        wishes.save(db, "m", chosen)
        wishes.approve(db, "m", 6, "sha256:c")
    with Database(tmp_path / "state.db") as db:
        assert wishes.load(db, "m") == chosen
        assert wishes.load(db, "other") == wishes.Wishes()
        assert wishes.is_approved(db, "m", 6, "sha256:c")
        assert not wishes.is_approved(db, "m", 6, "sha256:d")
        wishes.forget_leaving(db, "m")
        assert wishes.load(db, "m") == wishes.Wishes(held=True, pinned=chosen.pinned)
