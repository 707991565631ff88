"""Named points at which a crash test may end this process; otherwise a look at the environment.

`SYNCD_CRASH_AT=NAME[:K]` sends the signal at the K-th time (default 1) that this process comes by NAME.
`SYNCD_CRASH_SIGNAL` is KILL (default) or STOP: a test then copies the disk as a power cut leaves it, and kills.
`SYNCD_CRASH_LOG=PATH` appends every name that is passed: a test shows that its points are on the way.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from typing import Final

_passed: Final[Counter[str]] = Counter()


def reached(name: str) -> None:
    """Say that the step called `name` (like `edge.before.install_version`, no colon in it) is reached."""
    log = os.environ.get("SYNCD_CRASH_LOG")
    if log:
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, f"{name}\n".encode())
        finally:
            os.close(descriptor)
    wanted = os.environ.get("SYNCD_CRASH_AT")
    if not wanted:
        return
    point, _, times = wanted.partition(":")
    if point != name:
        return
    _passed[name] += 1
    if _passed[name] == int(times or "1"):
        stop = os.environ.get("SYNCD_CRASH_SIGNAL") == "STOP"
        os.kill(os.getpid(), signal.SIGSTOP if stop else signal.SIGKILL)
