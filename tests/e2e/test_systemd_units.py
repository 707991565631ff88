"""deploy/systemd on a real systemd: start, publish, follow, kill, watchdog, reload, stop; and how hardened it is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import ROOT, save_checkpoint
from tests.support.nspawn import Machine, booted, fresh_root, install_syncd, install_units

EDGE = "syncd.service"
PUBLISH = "syncd-publish@ada.service"
WATCHDOG_S = 4.0

pytestmark = [
    pytest.mark.root,
    pytest.mark.debian("debootstrap", "systemd-nspawn", "nsenter"),
    pytest.mark.timeout(420),
]

PUBLISH_TOML = """[store]
url = "file:///srv/syncd/store"
[trust]
root = "/etc/syncd/root.json"
keys = "/etc/syncd/keys"
[[publish]]
model = "m"
watch = "/home/ada/runs"
settle = "100ms"
rescan = "500ms"
"""
EDGE_TOML = """[store]
url = "file:///srv/syncd/store"
[trust]
root = "/etc/syncd/root.json"
[[follow]]
model = "m"
poll = "1s"
probation = "0s"
"""


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A booted Debian with syncd, a user who trains, and a founded fleet."""
    with fresh_root() as root:
        binds = install_syncd(root)
        install_units(root, watchdog_s=WATCHDOG_S)
        (root / "usr/lib/sysusers.d/ada.conf").write_text('u ada - "one who trains" /home/ada\n')
        with booted(root, binds) as running:
            _found_fleet(running)
            yield running


def _found_fleet(machine: Machine) -> None:
    words = "init file:///srv/syncd/store --model m --keys /etc/syncd/keys --no-passphrase --no-input"
    machine.run("mkdir", "-p", "/srv/syncd", "/home/ada/runs")
    machine.run("syncd", *words.split())
    machine.run("chown", "-R", "ada:ada", "/srv/syncd", "/home/ada", "/etc/syncd/keys")
    (machine.root / "etc/syncd/publish-ada.toml").write_text(PUBLISH_TOML)
    (machine.root / "etc/syncd/config.toml").write_text(EDGE_TOML)


def write_checkpoint(machine: Machine, tmp_path: Path, epoch: int) -> None:
    """As training writes: the trainer's own file, open to nobody else."""
    save_checkpoint(tmp_path / f"epoch-{epoch}.pt", epoch)
    place = machine.root / "home/ada/runs" / f"epoch-{epoch}.pt"
    aside = place.with_suffix(".tmp")
    shutil.copy(tmp_path / place.name, aside)
    aside.chmod(0o600)
    owner = place.parent.stat()
    os.chown(aside, owner.st_uid, owner.st_gid)
    aside.rename(place)


def serving(machine: Machine) -> int | None:
    text = machine.run("syncd", "status", "--json", check=False)
    found: int | None = json.loads(text)["models"][0]["serving"] if '"models"' in text else None
    return found


def wait_for_restart(machine: Machine, unit: str, pid: str) -> None:
    machine.eventually(
        lambda: (
            machine.property(unit, "MainPID") not in ("0", pid)
            and machine.property(unit, "ActiveState") == "active"
        ),
        f"{unit} is active again",
        60,
    )


def test_the_units_publish_follow_survive_kill_and_hang_reload_and_stop(
    machine: Machine, tmp_path: Path
) -> None:
    machine.run("systemctl", "start", PUBLISH, EDGE)
    for unit in (PUBLISH, EDGE):
        assert machine.property(unit, "ActiveState") == "active"
    assert machine.run("stat", "-c", "%a %U:%G", "/run/syncd/status.sock").split() == ["660", "syncd:syncd"]
    assert machine.run("stat", "-c", "%a %U:%G", "/var/lib/syncd").split() == ["750", "syncd:syncd"]

    write_checkpoint(machine, tmp_path, 1)
    machine.eventually(lambda: serving(machine) == 1, "version 1 serves", 60)
    published = json.loads(machine.run("syncd", "status", "--json", "-c", "/etc/syncd/publish-ada.toml"))
    assert published["published"][0]["last_version"] == 1
    machine.eventually(
        lambda: "m@1 serving" in machine.property(EDGE, "StatusText"), "systemctl status says so", 30
    )

    pid = machine.property(EDGE, "MainPID")
    machine.run("systemctl", "kill", "--kill-who=main", "--signal=KILL", EDGE)
    wait_for_restart(machine, EDGE, pid)
    write_checkpoint(machine, tmp_path, 2)
    machine.eventually(lambda: serving(machine) == 2, "version 2 serves after the kill", 60)

    pid = machine.property(EDGE, "MainPID")
    machine.run("systemctl", "kill", "--kill-who=main", "--signal=STOP", EDGE)
    wait_for_restart(machine, EDGE, pid)
    assert "Watchdog timeout" in machine.log(EDGE)
    machine.eventually(lambda: serving(machine) == 2, "version 2 serves after the hang", 30)

    pid = machine.property(EDGE, "MainPID")
    machine.run("systemctl", "reload", EDGE)
    machine.eventually(lambda: "reloaded" in machine.log(EDGE), "it has reloaded", 20)
    assert machine.property(EDGE, "MainPID") == pid

    machine.run("systemctl", "stop", EDGE, PUBLISH)
    for unit in (EDGE, PUBLISH):
        assert machine.property(unit, "ActiveState") == "inactive"
        assert machine.property(unit, "Result") == "success"
        assert "ended" in machine.log(unit)
    assert machine.run("ls", "/var/lib/syncd/models/m/versions").split() == ["1", "2"]


def test_a_wrong_configuration_is_told_and_not_tried_again(machine: Machine) -> None:
    config = machine.root / "etc/syncd/publish-bob.toml"
    (machine.root / "usr/lib/sysusers.d/bob.conf").write_text('u bob - "another" /home/bob\n')
    machine.run("systemd-sysusers")
    config.write_text(PUBLISH_TOML.replace("settle", "setle"))
    machine.run("systemctl", "start", "syncd-publish@bob.service", check=False)
    assert machine.property("syncd-publish@bob.service", "ActiveState") == "failed"
    assert machine.property("syncd-publish@bob.service", "NRestarts") == "0"
    assert "unknown key; did you mean publish[0].settle?" in machine.log("syncd-publish@bob.service")


def test_check_as_the_edges_user_tells_that_it_cannot_publish(machine: Machine) -> None:
    """The edge's user may not read what the trainer writes: `syncd check` says so before anything runs."""
    text = machine.run(
        "syncd", "check", "-c", "/etc/syncd/publish-ada.toml", "--json", user="syncd", check=False
    )
    bad = {each["name"] for each in json.loads(text)["checks"] if not each["ok"]}
    assert bad >= {"key of m", "watch /home/ada/runs"}
    text = machine.run("syncd", "check", "-c", "/etc/syncd/config.toml", "--json", user="syncd")
    assert json.loads(text)["ok"] is True


@pytest.mark.parametrize("unit", ["syncd.service", "syncd-publish@.service"])
def test_the_units_are_hardened(unit: str) -> None:
    """systemd's own judgement: 0 is a unit that may do nothing, 10 one that may do everything."""
    words = [
        "systemd-analyze",
        "security",
        "--offline=yes",
        "--threshold=25",
        str(ROOT / "deploy/systemd" / unit),
    ]
    judged = subprocess.run(words, capture_output=True, text=True, check=False)
    assert judged.returncode == 0, judged.stdout[-600:] + judged.stderr
