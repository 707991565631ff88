"""Many short processes of one program without paying its imports each time: a parent that forks, real kills.

The parent imports the program once and has no threads; each run is a fork of it, with its own environment, killed for
real by its crash point or stopped there (SYNCD_CRASH_SIGNAL=STOP) until the test says `kill`.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Forked:
    """Runs `module.main(arguments)` in forks, one at a time; a context manager."""

    def __init__(self, module: str) -> None:
        command = [sys.executable, "-m", "tests.support.forked", module]
        self._parent = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.close()
        self._parent.wait(timeout=30)
        self._parent.stdout.close()

    def run(
        self,
        arguments: Sequence[object],
        log: Path,
        environment: Mapping[str, str] | None = None,
        when_stopped: Callable[[], None] | None = None,
    ) -> int:
        """Run to the end and return the exit status (negative: the signal); its output is in `log`."""
        self._say(
            {
                "arguments": [str(each) for each in arguments],
                "environment": environment or {},
                "log": str(log),
            }
        )
        answer = self._hear()
        if answer["stopped"]:
            try:
                if when_stopped is not None:
                    when_stopped()
            finally:
                self._say({"kill": True})
                answer = self._hear()
        return int(answer["status"])

    def _say(self, message: dict[str, object]) -> None:
        assert self._parent.stdin is not None
        self._parent.stdin.write(json.dumps(message) + "\n")
        self._parent.stdin.flush()

    def _hear(self) -> dict[str, int]:
        assert self._parent.stdout is not None
        answer: dict[str, int] = json.loads(self._parent.stdout.readline())
        return answer


def _child(main: Callable[[Sequence[str]], int], order: dict[str, object]) -> None:
    log = os.open(str(order["log"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    environment = order["environment"]
    assert isinstance(environment, dict)
    os.environ.update(environment)
    arguments = order["arguments"]
    assert isinstance(arguments, list)
    status = 99
    try:
        status = main(arguments)
    except BaseException:  # noqa: BLE001 - shown in the log; the status tells the test
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _parent(main: Callable[[Sequence[str]], int]) -> None:
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _child(main, json.loads(line))
        _, status = os.waitpid(pid, os.WUNTRACED)
        stopped = os.WIFSTOPPED(status)
        if stopped:
            print(json.dumps({"stopped": 1, "status": 0}), flush=True)
            sys.stdin.readline()
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
        print(json.dumps({"stopped": 0, "status": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    program = importlib.import_module(sys.argv[1])
    program.warm()
    _parent(program.main)
