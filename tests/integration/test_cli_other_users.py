"""What a user who is not root sees: files of mode 0600 of another, a folder that is closed, somebody else's daemon."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import ROOT, Fleet, environment, found_fleet, running, save_checkpoint

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """A fleet in a folder that another user may enter: pytest's own are closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="syncd-users-"))
    folder.chmod(0o755)
    yield found_fleet(folder)
    shutil.rmtree(folder)


def as_nobody(
    *words: str | Path, home: Path, first: tuple[str | Path, ...]
) -> subprocess.CompletedProcess[str]:
    """Type a command as the user nobody.

    Root alone may reach the interpreter's files here: root types `first` in the same process, which imports all that
    is needed.
    """
    program = (
        "import contextlib, io, json, os, sys\n"
        "from syncd.cli.main import run\n"
        "import syncd.daemon.run, syncd.publisher.pipeline, syncd.edge.follow\n"
        "first, words = json.loads(sys.argv[1])\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):\n"
        "    run(first)\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "sys.exit(run(words))\n"
    )
    both = json.dumps([[str(word) for word in first], [str(word) for word in words]])
    return subprocess.run(
        [sys.executable, "-c", program, both],
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
    words = ("check", "-c", config, "--json")
    answer = as_nobody(*words, home=fleet.folder, first=words)
    assert answer.returncode == 4, answer.stderr  # the first failure: this user cannot write the store
    bad = {each["name"]: each for each in json.loads(answer.stdout)["checks"] if not each["ok"]}
    assert set(bad) == {"store is honest", f"watch {runs}", "key of m", "node folder"}
    assert "0600" in bad[f"watch {runs}"]["detail"]
    assert "syncd-publish@USER" in bad[f"watch {runs}"]["fix"]


def test_root_with_no_daemon_leaves_nothing_in_the_folder_that_its_owner_could_not_use(fleet: Fleet) -> None:
    config = fleet.config("owned", '[[follow]]\nmodel = "m"\n')
    node = fleet.folder / "owned"
    with running(config) as daemon:
        assert daemon.end() == 0
    for each in (node, *node.rglob("*")):
        os.chown(each, 65534, 65534, follow_symlinks=False)
    words = ["hold", "m", "-c", str(config), "--json"]
    program = (  # root alone may reach the interpreter's files here: it imports all that is needed before
        "import json, sys\n"
        "from syncd.cli.main import run\n"
        "import syncd.daemon.run, syncd.edge.follow, syncd.store.folder, syncd.trust.updating, syncd.cli.node\n"
        "import syncd.trust.receipts\n"
        "sys.exit(run(json.loads(sys.argv[1])))\n"
    )
    command = [sys.executable, "-c", program, json.dumps(words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["held"] is True
    assert {each.lstat().st_uid for each in node.rglob("*")} == {65534}


def test_a_daemon_that_this_user_may_not_ask_says_which_group_may(fleet: Fleet) -> None:
    config = fleet.config("closed")
    with running(config):
        answer = as_nobody(
            "status", "-c", config, "--json", home=fleet.folder, first=("status", "-c", config)
        )
    assert answer.returncode == 1
    error = json.loads(answer.stdout)["error"]
    assert error["code"] == "daemon-silent"
    assert "group syncd" in error["do"]


def test_a_node_folder_of_another_user_is_refused_and_nothing_is_left(fleet: Fleet) -> None:
    folder = fleet.folder / "theirs"
    folder.mkdir(mode=0o700)
    config = fleet.config("theirs")
    answer = as_nobody("run", "-c", config, "--json", home=fleet.folder, first=("check", "-c", config))
    assert answer.returncode in (1, 2), answer
    error = json.loads(answer.stdout)["error"]
    assert error["code"] != "internal"
    assert str(fleet.folder) in json.dumps(error)
    assert list(folder.iterdir()) == []
    assert not (fleet.folder / "theirs.sock").exists()
