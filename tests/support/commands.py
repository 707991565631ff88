"""syncd as people run it: commands and daemons in processes of their own, and the fleet that they need."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def environment(**more: str) -> dict[str, str]:
    """This process's environment without what would change syncd's behaviour."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SYNCD_", "XDG_"))}
    return {**kept, "PYTHONDONTWRITEBYTECODE": "1", "NO_COLOR": "1", **more}


@dataclass(frozen=True)
class Answer:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object on stdout."""
        found: dict[str, Any] = json.loads(self.out)
        return found


def syncd(*words: str | Path, cwd: Path | None = None, within_s: float = 60.0, **env: str) -> Answer:
    """Type one command, with nothing to read on stdin."""
    done = subprocess.run(
        [sys.executable, "-m", "syncd", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=within_s,
        check=False,
        stdin=subprocess.DEVNULL,
        env=environment(**env),
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def done(*words: str | Path, cwd: Path | None = None, **env: str) -> dict[str, Any]:
    """Type one command with `--json`, which must succeed."""
    answer = syncd(*words, "--json", cwd=cwd, **env)
    assert answer.status == 0, answer
    return answer.json


def wait_until(holds: Callable[[], bool], what: str, within_s: float = 30.0) -> None:
    """Look again and again until `holds`, or fail saying what did not happen."""
    end = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > end:
            raise AssertionError(f"within {within_s:.0f} s not: {what}")
        time.sleep(0.02)


class Daemon:
    """A running `syncd run`; its stderr is kept in a file."""

    def __init__(self, config: Path, log: Path, *words: str, **env: str) -> None:
        self.config = config
        self.log = log
        self._from = log.stat().st_size if log.exists() else 0
        with log.open("ab") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "syncd", "run", "-c", str(config), *words],
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                stdin=subprocess.DEVNULL,
                env=environment(**env),
                start_new_session=True,
            )

    @property
    def text(self) -> str:
        """What it has logged, it and no daemon before it."""
        return self.log.read_bytes()[self._from :].decode()

    def wait_for(self, text: str, within_s: float = 30.0, count: int = 1) -> None:
        """Until its log holds `text` so often, while it lives."""

        def seen() -> bool:
            if self.process.poll() is not None and self.text.count(text) < count:
                raise AssertionError(f"the daemon ended with {self.process.returncode}:\n{self.text}")
            return self.text.count(text) >= count

        wait_until(seen, f"{text!r} in the log", within_s)

    def status(self) -> dict[str, Any]:
        """`syncd status --json`."""
        return done("status", "-c", self.config)

    def end(self, number: signal.Signals = signal.SIGTERM, within_s: float = 30.0) -> int:
        """Signal it and wait for its end."""
        self.process.send_signal(number)
        return self.process.wait(within_s)


@contextlib.contextmanager
def running(config: Path, *words: str, **env: str) -> Iterator[Daemon]:
    """A daemon that is up when the block begins and gone when it ends."""
    daemon = Daemon(config, config.parent / f"{config.stem}.log", *words, **env)
    try:
        daemon.wait_for("runs  version=")
        yield daemon
    finally:
        if daemon.process.poll() is None:
            daemon.process.kill()
        daemon.process.wait(10)


@dataclass(frozen=True)
class Fleet:
    """A founded folder store with one model `m`, and what a configuration needs of it."""

    folder: Path
    fingerprint: str

    @property
    def head(self) -> str:
        """The beginning of a configuration: store, trust with keys."""
        return (
            f'[store]\nurl = "file://{self.folder}/store"\n'
            f'[trust]\nroot = "{self.folder}/root.json"\nkeys = "{self.folder}/keys"\n'
        )

    def config(self, name: str, text: str = "") -> Path:
        """A configuration with a node folder and a status socket of its own."""
        path = self.folder / f"{name}.toml"
        path.write_text(
            f'{self.head}[node]\nname = "{name}"\nfolder = "{self.folder}/{name}"\n'
            f'[status]\nlisten = "{self.folder}/{name}.sock"\n{text}'
        )
        return path


def found_fleet(folder: Path) -> Fleet:
    """`syncd init` of a folder store with the model `m`."""
    made = done(
        "init",
        f"file://{folder}/store",
        "--model",
        "m",
        "--keys",
        folder / "keys",
        "--no-passphrase",
        "--no-input",
    )
    return Fleet(folder, made["fingerprint"])


def copy_of(fleet: Fleet, folder: Path) -> Fleet:
    """The same fleet in a folder of its own: founding one takes seconds."""
    for name in ("store", "keys", "root.json"):
        source = fleet.folder / name
        if source.is_dir():
            shutil.copytree(source, folder / name)
        else:
            shutil.copy2(source, folder / name)
    return Fleet(folder, fleet.fingerprint)


def save_checkpoint(path: Path, seed: int, width: int = 16) -> None:
    """A small torch checkpoint of a linear model, put in place by rename as careful training does."""
    import torch

    torch.manual_seed(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    torch.save({"model": torch.nn.Linear(width, width).state_dict(), "epoch": seed}, aside)
    aside.rename(path)


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below `folder` with its mode and bytes: to see that nothing changed."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
    }


def free_port() -> int:
    """A TCP port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
