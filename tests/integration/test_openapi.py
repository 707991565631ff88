"""Our OpenAPI document describes what a real daemon does: schemathesis tries every route of it and finds nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.support.commands import Fleet, done, found_fleet, free_port, running, save_checkpoint, wait_until

TOKEN = "0123456789abcdef" * 2
BATCH = "Accept: application/cloudevents-batch+json"  # a stream would not end


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """A fleet with two versions of m."""
    fleet = found_fleet(tmp_path_factory.mktemp("founded"))
    publisher = fleet.config("publisher", '[[publish]]\nmodel = "m"\nwatch = "/nowhere"\n')
    for seed in (1, 2):
        save_checkpoint(fleet.folder / f"{seed}.pt", seed)
        done("publish", fleet.folder / f"{seed}.pt", "--model", "m", "-c", publisher)
    return fleet


def schemathesis(folder: Path, url: str, *words: str, model: str | None) -> str:
    """Its report; it must have found nothing."""
    program = shutil.which("schemathesis", path=str(Path(sys.executable).parent))
    assert program is not None
    folder.mkdir()
    parameters = f'[parameters]\n"path.model" = "{model}"\n' if model else ""
    (folder / "schemathesis.toml").write_text(parameters)
    command = [
        program,
        "run",
        f"{url}/openapi.json",
        "--seed",
        "1",
        "--max-examples",
        "8",
        "--no-color",
        *words,
    ]
    found = subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True, timeout=150)
    assert found.returncode == 0, found.stdout
    return found.stdout


def test_schemathesis_finds_nothing_in_a_running_daemon(fleet: Fleet, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    config = fleet.config("edge", '[[follow]]\nmodel = "m"\npoll = "5s"\nprobation = "0s"\n')
    port = free_port()
    over_tcp = f'listen = "127.0.0.1:{port}"\ntoken_file = "{token}"'
    config.write_text(config.read_text().replace(f'listen = "{fleet.folder}/edge.sock"', over_tcp))
    url = f"http://127.0.0.1:{port}"
    with running(config) as daemon:
        wait_until(lambda: daemon.status()["models"][0]["serving"] == 2, "version 2 serves", 60)
        bearer = f"Authorization: Bearer {TOKEN}"
        known = schemathesis(tmp_path / "known", url, "-H", bearer, "-H", BATCH, model="m")
        assert "No issues found" in known
        # Without a token another method of a route that reads is answered 401 before anybody looks whether it exists.
        stranger = ("-H", BATCH, "--exclude-checks", "unsupported_method", "--phases", "fuzzing")
        schemathesis(tmp_path / "any", url, *stranger, model=None)
        with urllib.request.urlopen(f"{url}/readyz", timeout=10) as answer:
            assert answer.status == 200
        assert "Traceback" not in daemon.text
        assert daemon.end() == 0
