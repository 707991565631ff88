"""The state file: whole after every kill, private, and never forgotten in silence."""

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from syncd.errors import Failed, NeedsNewerSyncd
from syncd.state import events, installed, published
from syncd.state.db import MIGRATIONS, Database


@pytest.fixture
def db(tmp_path):
    with Database(tmp_path / "state.db") as opened:
        yield opened


def test_the_file_and_its_companions_are_readable_by_their_owner_alone(db):
    db.set_note("edge", "x", {"a": 1})
    files = list(db.path.parent.glob("state.db*"))
    assert len(files) >= 2
    assert {stat.S_IMODE(each.stat().st_mode) for each in files} == {0o600}


def test_a_file_of_a_later_syncd_is_refused_and_not_touched(tmp_path):
    path = tmp_path / "state.db"
    Database(path).close()
    with sqlite3.connect(path) as raw:
        raw.execute("PRAGMA user_version=99")
    raw.close()
    before = path.read_bytes()
    with pytest.raises(NeedsNewerSyncd, match=f"format 99, this syncd knows {len(MIGRATIONS)}"):
        Database(path)
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_named_in_the_error(tmp_path):
    path = tmp_path / "state.db"
    path.write_bytes(b"not a database, but long enough to look at" * 50)
    with pytest.raises(Failed, match="cannot be used") as caught:
        Database(path)
    assert caught.value.where["path"] == path


def test_a_transaction_that_fails_changes_nothing(db):
    db.set_note("edge", "x", {"a": 1})

    def half_way():
        with db.transaction():
            db.set_note("edge", "x", {"a": 2})
            db.count("syncd_x_total", 5, model="m")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half_way()
    assert db.note("edge", "x") == {"a": 1}
    assert db.counters() == []


def test_notes_counters_and_events_survive_a_reopening(tmp_path):
    with Database(tmp_path / "state.db") as db:
        db.set_note("publisher", "m", {"version": 7})
        db.count("syncd_edge_wire_bytes_total", 10, model="m")
        db.count("syncd_edge_wire_bytes_total", 5, model="m")
        first = events.record(db, "installed", "m", version=1)
    with Database(tmp_path / "state.db") as db:
        assert db.notes("publisher") == {"m": {"version": 7}}
        db.set_note("publisher", "m", None)
        assert db.note("publisher", "m") is None
        assert db.counters() == [("syncd_edge_wire_bytes_total", {"model": "m"}, 15.0)]
        assert events.record(db, "swap", "m", version=1) == first + 1
        assert [event.kind for event in events.since(db, 0)] == ["installed", "swap"]
        assert events.since(db, first)[0].data == {"version": 1}


def test_only_the_newest_events_are_kept(db, monkeypatch):
    monkeypatch.setattr(events, "KEPT", 3)
    numbers = [events.record(db, "poll", "m") for _ in range(5)]
    assert [event.id for event in events.since(db, 0)] == numbers[2:]


def test_published_checkpoints_are_found_by_identity_and_by_content(db):
    published.remember(db, "m", published.Published("a:1", "sha256:x", 3))
    published.remember(db, "m", published.Published("b:1", None, None, "truncated"))
    assert published.by_identity(db, "m", "b:1").why == "truncated"
    assert published.by_content(db, "m", "sha256:x").version == 3
    assert published.by_content(db, "other", "sha256:x") is None
    published.forget(db, "m", "b:1")
    assert [each.identity for each in published.all_of(db, "m")] == ["a:1"]


def test_quarantine_is_by_version_and_head_and_the_first_reason_stays(db):
    installed.put_in_quarantine(db, "m", installed.Quarantined(4, "sha256:a", "gate", "not finite"))
    installed.put_in_quarantine(db, "m", installed.Quarantined(4, "sha256:a", "probation", "later"))
    installed.put_in_quarantine(db, "m", installed.Quarantined(4, "sha256:b", "gate", "another head"))
    assert [each.reason for each in installed.quarantine(db, "m")] == ["not finite", "another head"]
    installed.lift_quarantine(db, "m", 4)
    assert installed.quarantine(db, "m") == []


def test_killed_at_any_moment_the_file_holds_whole_transactions(tmp_path):
    """A writer that keeps two notes equal is killed while it writes; they are equal afterwards."""
    script = (
        "import sys; from pathlib import Path; from syncd.state.db import Database\n"
        "db = Database(Path(sys.argv[1])); print('up', flush=True)\n"
        "for i in range(10**9):\n"
        "    with db.transaction():\n"
        "        db.set_note('t', 'a', {'i': i}); db.set_note('t', 'b', {'i': i})\n"
        "    if i == 20: print('twenty', flush=True)\n"
    )
    path: Path = tmp_path / "state.db"
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        assert child.stdout.readline() == b"twenty\n"
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
        with Database(path) as db:
            assert db.note("t", "a") == db.note("t", "b") != {}


def test_each_migration_is_one_entry_and_the_first_format_is_kept(db):
    assert db.rows("PRAGMA user_version") == [(len(MIGRATIONS),)]
