"""Parsing in a child process with limits on memory, CPU and time: what it survives, the daemon survives."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

WALL_SECONDS: Final = 60.0
MAX_ANSWER_BYTES: Final = 64 << 20
_ROOT: Final = str(Path(__file__).resolve().parents[2])
_START: Final = (
    "import sys; sys.path.append(sys.argv.pop(1)); from syncd.checkpoint.child import main; main()"
)


def parse_in_child(descriptor: int, size: int, name: str) -> dict[str, Any]:
    """The child's answer (see child.answer) for the open file; a child that dies or is too slow is `hostile`.

    Blocks for at most 60 s; other threads run meanwhile. The child has the descriptor and nothing else of ours.
    """
    command = [sys.executable, "-I", "-S", "-c", _START, _ROOT, str(descriptor), str(size), name]
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=(descriptor,),
            env={"LC_ALL": "C"},
            cwd="/",
        )
    except OSError as error:  # too many processes, no memory: ours to suffer, not the checkpoint's fault
        return {"outcome": "failed", "what": f"no process to read it in: {os.strerror(error.errno or 0)}"}
    with child:
        try:
            raw = _read_all(child, time.monotonic() + WALL_SECONDS)
        finally:
            if child.poll() is None:
                child.kill()
        status = child.wait()
    if raw is None:
        return {
            "outcome": "hostile",
            "what": f"reading it took more than {WALL_SECONDS:.0f} s or gave too much",
        }
    return _understand(raw, status)


def _read_all(child: subprocess.Popen[bytes], deadline: float) -> bytes | None:
    """All that the child writes until it closes its output; None if it takes too long or writes too much."""
    assert child.stdout is not None
    parts: list[bytes] = []
    total = 0
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return None
            part = os.read(child.stdout.fileno(), 1 << 20)
            if not part:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(timeout=max(1.0, deadline - time.monotonic()))
                return b"".join(parts)
            total += len(part)
            if total > MAX_ANSWER_BYTES:
                return None
            parts.append(part)


def _understand(raw: bytes, status: int) -> dict[str, Any]:
    if status == 0:
        answer = json.loads(raw)
        if isinstance(answer, dict):
            return answer
    if status in (-signal.SIGXCPU, -signal.SIGKILL):
        return {"outcome": "hostile", "what": "reading it takes too much CPU time or memory"}
    return {"outcome": "failed", "what": f"the process that reads it ended with status {status}"}
