"""What a user who is not root sees: files of mode 0600 of another, a folder that is closed, somebody else's daemon."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import ROOT, Fleet, environment, found_fleet, running, save_checkpoint

pytestmark = pytest.mark.root
PRELOADED = (
    "cryptography.hazmat.primitives.asymmetric.ed25519",
    "cryptography.hazmat.primitives.serialization",
    "securesystemslib.signer",
    "syncd.checkpoint.read",
    "syncd.checkpoint.select",
    "syncd.cli.app",
    "syncd.cli.check",
    "syncd.cli.session",
    "syncd.config",
    "syncd.daemon.contact",
    "syncd.daemon.logs",
    "syncd.daemon.roles",
    "syncd.daemon.run",
    "syncd.edge.poll",
    "syncd.findings",
    "syncd.publisher.publish",
    "syncd.status.client",
    "syncd.store.folder",
    "syncd.store.open",
    "syncd.store.probe",
    "syncd.trust.keys",
)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """A fleet in a folder that another user may enter: pytest's own are closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="syncd-users-"))
    folder.chmod(0o755)
    yield found_fleet(folder)
    shutil.rmtree(folder)


def as_nobody(*words: str | Path, home: Path) -> subprocess.CompletedProcess[str]:
    """Type a command as the user nobody; the interpreter has been started by root, who alone may reach it here."""
    program = (
        "import os, sys; os.setgroups([]); os.setgid(65534); os.setuid(65534); "
        "from syncd.cli.main import run; sys.exit(run(sys.argv[1:]))"
    )
    preload = f"import {', '.join(PRELOADED)}; "
    return subprocess.run(
        [sys.executable, "-c", preload + program, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=ROOT,
        env=environment(HOME=str(home)),
    )


def test_check_tells_that_this_user_cannot_read_what_training_writes(fleet: Fleet) -> None:
    runs = fleet.folder / "runs"
    save_checkpoint(runs / "epoch-1.pt", 1)
    (runs / "epoch-1.pt").chmod(0o600)
    config = fleet.config("reader", f'[[publish]]\nmodel = "m"\nwatch = "{runs}"\n')
    answer = as_nobody("check", "-c", config, "--json", home=fleet.folder)
    assert answer.returncode == 4, answer.stderr  # the first failure: this user cannot write the store
    bad = {each["name"]: each for each in json.loads(answer.stdout)["checks"] if not each["ok"]}
    assert {f"watch {runs}", "key of m", "node folder"} <= set(bad)
    assert "0600" in bad[f"watch {runs}"]["detail"]
    assert "syncd-publish@USER" in bad[f"watch {runs}"]["fix"]


def test_a_daemon_that_this_user_may_not_ask_says_which_group_may(fleet: Fleet) -> None:
    config = fleet.config("closed")
    with running(config):
        answer = as_nobody("status", "-c", config, "--json", home=fleet.folder)
    assert answer.returncode == 1
    error = json.loads(answer.stdout)["error"]
    assert error["code"] == "daemon-silent"
    assert "group syncd" in error["do"]


def test_a_node_folder_of_another_user_is_refused_and_nothing_is_left(fleet: Fleet) -> None:
    folder = fleet.folder / "theirs"
    folder.mkdir(mode=0o700)
    config = fleet.config("theirs")
    answer = as_nobody("run", "-c", config, "--json", home=fleet.folder)
    assert answer.returncode in (1, 2), answer
    error = json.loads(answer.stdout)["error"]
    assert error["code"] != "internal"
    assert str(fleet.folder) in json.dumps(error)
    assert list(folder.iterdir()) == []
    assert not (fleet.folder / "theirs.sock").exists()
