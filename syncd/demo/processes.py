"""Starting, watching and ending what the demo runs: daemons, scripts and commands, each a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from syncd.errors import Failed

COMMAND_SECONDS = 120.0


def command(*words: str, cwd: Path) -> dict[str, Any]:
    """Type one syncd command with `--json` and return its object; Failed with its own words if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "syncd", *words, "--json"],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=COMMAND_SECONDS,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        raise Failed(
            f"`syncd {' '.join(words)}` ended with {done.returncode}",
            why=(done.stdout + done.stderr).strip()[-2000:],
            do="run it again with --keep DIR and look at the logs there",
        )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


class Process:
    """One process in its own session; its standard error goes to a log, its JSON lines are kept (the last 1,000)."""

    def __init__(self, name: str, words: Sequence[str], *, folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self.lines: deque[dict[str, Any]] = deque(maxlen=1000)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *words],
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        self._reader = threading.Thread(target=self._read, name=f"read-{name}", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith(b"{"):
                self.lines.append(json.loads(line))

    @property
    def last(self) -> dict[str, Any]:
        """The newest JSON line, or an empty object."""
        return self.lines[-1] if self.lines else {}

    @property
    def ended(self) -> int | None:
        """The exit status once it has ended."""
        return self._process.poll()

    def check(self) -> None:
        """Raise Failed, with the end of its log, if it ended though nobody told it to."""
        if self.ended not in (None, 0):
            tail = self.log.read_text(errors="replace")[-2000:]
            raise Failed(f"the {self.name} process ended with {self.ended}", why=tail)

    def kill(self) -> None:
        """SIGKILL, as a power cut or the kernel's out-of-memory killer would."""
        self._process.kill()
        self._process.wait(timeout=10)

    def stop(self, within: float = 15.0) -> None:
        """SIGTERM, and SIGKILL for one that does not end in `within` seconds."""
        if self.ended is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(timeout=within)
            except subprocess.TimeoutExpired:
                self.kill()
        self._reader.join(timeout=5)

    def finish(self, within: float) -> None:
        """Wait for it to end by itself, in good order."""
        self._process.wait(timeout=within)
        self._reader.join(timeout=5)
        self.check()
