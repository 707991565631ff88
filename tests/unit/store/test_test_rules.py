"""The rules of the test run itself: a skip is red in CI, benches run when asked for, loops are in debug mode."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SAMPLE = """
import pytest

@pytest.mark.debian("no-such-program")
def test_needs_a_program(): ...

@pytest.mark.bench
def test_measures(): ...

def test_passes(): ...
"""


def run_pytest(file: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "tests.conftest",
            "-c",
            ROOT / "pyproject.toml",
            "-q",
            *options,
            file,
        ],
        cwd=ROOT,
        env={**os.environ, "SYNCD_CI": "", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    file = tmp_path / "test_sample.py"
    file.write_text(SAMPLE)
    return file


def test_a_test_whose_program_is_missing_is_skipped_by_name(sample: Path) -> None:
    done = run_pytest(sample)
    assert done.returncode == 0, done.stdout
    assert "test_needs_a_program needs the program no-such-program" in done.stdout
    assert "1 passed, 1 skipped, 1 deselected" in done.stdout


def test_a_skip_in_ci_is_a_failure_that_names_it(sample: Path) -> None:
    done = run_pytest(sample, SYNCD_CI="1")
    assert done.returncode == 1
    assert "test_needs_a_program was skipped where nothing may be" in done.stdout


def test_benches_run_when_asked_for(sample: Path) -> None:
    assert "1 passed, 2 deselected" in run_pytest(sample, "-m", "bench").stdout


async def test_loops_are_in_debug_mode() -> None:
    assert asyncio.get_running_loop().get_debug()
