"""Check the object of `syncd demo --json`: `python tests/support/check_demo.py FILE`."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def check(result: dict) -> None:
    """Raise AssertionError, with the value, where the demo did not show what it is there to show."""
    versions, predictions = result["versions"], result["predictions"]
    assert len(versions) >= 2, versions
    assert all(row["checkpoint_bytes"] > row["wire_bytes"] > 0 for row in versions), versions
    assert all(row["seconds_to_serve"] > 0 for row in versions), versions
    assert versions[-1]["accuracy"] > 0.5, versions
    assert predictions["total"] > 100, predictions
    assert predictions["failed"] == 0, predictions
    assert [entry["stage"] for entry in result["refused"]] == ["gate"], result["refused"]
    assert result["restarts"] >= 1, result["restarts"]
    assert result["restore"]["sha256_equal"] is True, result["restore"]
    assert result["restore"]["losses_equal"] is True, result["restore"]


if __name__ == "__main__":
    check(json.loads(Path(sys.argv[1]).read_text()))
    sys.stdout.write("the demo showed all that it is there to show\n")
