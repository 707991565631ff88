"""A Debian machine with a real systemd, booted in systemd-nspawn, with this syncd installed at /opt/syncd."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import site
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support.commands import ROOT, wait_until

PACKAGES = (
    "systemd,systemd-sysv,dbus,libssl3,libffi8,libsqlite3-0,libreadline8,zlib1g,libbz2-1.0,liblzma5,libexpat1,"
    "libuuid1,libncursesw6"
)
PREPARED = "SYNCD_TEST_DEBIAN_ROOT"
"""A root of the same packages that is there already is copied instead (a developer's time)."""


@contextlib.contextmanager
def fresh_root() -> Iterator[Path]:
    """A minimal Debian in memory, gone at the end; one or two minutes unless one is prepared."""
    folder = Path(tempfile.mkdtemp(prefix="syncd-debian-"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g,mode=0755", "syncd-debian", folder], check=True)
    try:
        _fill(folder)
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
        folder.rmdir()


def _fill(folder: Path) -> None:
    prepared = os.environ.get(PREPARED)
    if prepared and Path(prepared).is_dir():
        subprocess.run(["cp", "-a", f"{prepared}/.", folder], check=True)
        return
    command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(folder)]
    environ = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def install_syncd(root: Path) -> list[str]:
    """/opt/syncd as the units expect it, and what nspawn has to bind: interpreter and packages, read only."""
    home = root / "opt/syncd"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = home / "lib" / version / "site-packages"
    for folder in (home / "bin", home / "src/syncd", packages, root / "opt/packages", root / "opt/python"):
        folder.mkdir(parents=True)
    (packages / "here.pth").write_text("/opt/syncd/src\n/opt/packages\n")
    (root / "etc/ld.so.conf.d/python.conf").write_text("/opt/python/lib\n")
    (home / "bin/python").symlink_to(f"/opt/python/bin/{version}")
    (home / "pyvenv.cfg").write_text("home = /opt/python/bin\ninclude-system-site-packages = false\n")
    script = home / "bin/syncd"
    script.write_text("#!/opt/syncd/bin/python\nfrom syncd.cli.main import main\n\nmain()\n")
    script.chmod(0o755)
    found = next(path for path in site.getsitepackages() if Path(path).is_relative_to(sys.prefix))
    binds = [(sys.base_prefix, "/opt/python"), (found, "/opt/packages")]
    binds.append((str(ROOT / "syncd"), "/opt/syncd/src/syncd"))
    return [f"--bind-ro={source}:{target}" for source, target in binds]


def install_units(root: Path, *, watchdog_s: float) -> None:
    """The files of deploy/systemd where a package would put them, and a shorter watchdog."""
    source = ROOT / "deploy/systemd"
    for unit in source.glob("*.service"):
        shutil.copy(unit, root / "etc/systemd/system" / unit.name)
        override = root / "etc/systemd/system" / f"{unit.name}.d/test.conf"
        override.parent.mkdir()
        override.write_text(f"[Service]\nWatchdogSec={watchdog_s}\n")
    for kind in ("sysusers", "tmpfiles"):
        target = root / f"usr/lib/{kind}.d/syncd.conf"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / f"syncd.{kind}.conf", target)


class Machine:
    """A booted container: `run` runs in it, as root unless told otherwise."""

    def __init__(self, root: Path, leader: int) -> None:
        self.root = root
        self.leader = leader

    def run(self, *words: str, user: str | None = None, check: bool = True) -> str:
        """Run a command inside and return its stdout."""
        enter = ["nsenter", "-t", str(self.leader), "-m", "-p", "-u", "-i", "-n", "-C"]
        become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"] if user else []
        path = "PATH=/opt/syncd/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        command = [*enter, "/usr/bin/env", "-i", path, "LC_ALL=C.UTF-8", *become, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        if check and done.returncode:
            logs = self.run("journalctl", "--no-pager", "-n", "60", check=False)
            raise AssertionError(f"{words} ended with {done.returncode}\n{done.stdout}{done.stderr}\n{logs}")
        return done.stdout

    def state(self) -> str:
        """`running`, `degraded` (up, some unit failed), `starting`, or nothing while nobody answers."""
        return self.run("systemctl", "is-system-running", check=False).strip()

    def property(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.run("systemctl", "show", unit, "-p", name, "--value").strip()

    def eventually(self, holds: Callable[[], bool], what: str, within_s: float = 60.0) -> None:
        """`wait_until`, and if it never holds the machine's journal."""
        try:
            wait_until(holds, what, within_s)
        except AssertionError as error:
            raise AssertionError(
                f"{error}\n{self.run('journalctl', '--no-pager', '-n', '80', check=False)}"
            ) from None

    def log(self, unit: str) -> str:
        """The unit's journal."""
        return self.run("journalctl", "--no-pager", "-o", "cat", "-u", unit)


@contextlib.contextmanager
def booted(root: Path, binds: list[str]) -> Iterator[Machine]:
    """Boot the root; at the end it is powered off."""
    log = root.parent / f"{root.name}.log"
    command = [
        "systemd-nspawn",
        "-D",
        str(root),
        "--register=no",
        "--keep-unit",
        "--private-network",
        "--boot",
    ]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, *binds],
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        machine = Machine(root, _leader(process, log))
        machine.run("ldconfig")
        machine.eventually(lambda: machine.state() in ("running", "degraded"), "the machine is up", 120)
        yield machine
    finally:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        with contextlib.suppress(
            OSError
        ):  # nspawn's child is the machine's init: with it everything inside ends
            for child in children.read_text().split():
                os.kill(int(child), signal.SIGKILL)
        process.wait(20)
        log.unlink()


def _leader(process: subprocess.Popen[bytes], log: Path) -> int:
    """The container's first process: nspawn's child, once it has become init."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    found: list[int] = []

    def is_init() -> bool:
        assert process.poll() is None, log.read_text(errors="replace")
        with contextlib.suppress(OSError, IndexError):
            leader = int(children.read_text().split()[0])
            if Path(f"/proc/{leader}/comm").read_text().strip() in ("systemd", "init"):
                found.append(leader)
        return bool(found)

    wait_until(is_init, "systemd runs inside", 30)
    return found[-1]
