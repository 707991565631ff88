"""Several processes open one new state file at the same time: each finds it whole."""

from __future__ import annotations

import subprocess
import sys

OPEN = """
import sys, time
from pathlib import Path
from syncd.state.db import Database
print("ready", flush=True)
sys.stdin.readline()
with Database(Path(sys.argv[1])) as db:
    db.count("opened")
"""
PROCESSES = 8


def test_processes_that_open_a_new_file_at_once_all_find_it_whole(tmp_path):
    from syncd.state.db import Database

    path = tmp_path / "state.db"
    opening = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(PROCESSES)
    ]
    for each in opening:
        assert each.stdout is not None
        assert each.stdout.readline() == "ready\n"
    for each in opening:
        assert each.stdin is not None
        each.stdin.write("\n")
        each.stdin.flush()
    for each in opening:
        each.communicate(timeout=60)
    assert [each.returncode for each in opening] == [0] * PROCESSES
    with Database(path) as db:
        assert db.counters() == [("opened", {}, float(PROCESSES))]
