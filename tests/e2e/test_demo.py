"""The demo as a newcomer runs it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support.check_demo import check


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_demo_serves_every_version_refuses_the_poisoned_one_and_resumes_bit_for_bit():
    done = subprocess.run(
        [sys.executable, "-m", "syncd", "demo", "--json"],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    check(json.loads(done.stdout))
