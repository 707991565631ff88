"""`syncd run --with-serve`: the predictors as a child process, for laptops and containers; services have a unit."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from syncd.errors import Failed

PARENT: Final = "SYNCD_SERVE_PARENT"
# What systemd told this daemon about itself: the child is not the one that is meant.
_NOT_FOR_CHILDREN: Final = (
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
)


async def keep_serving(words: Sequence[str], node: Path, within_s: float) -> None:
    """Run `syncd serve WORDS` on the node folder until cancelled; then it drains, and is killed after `within_s`.

    Raises:
        Failed: it ended by itself; its own words are in the log.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "syncd",
        "serve",
        *words,
        stdin=asyncio.subprocess.DEVNULL,
        env=child_environment(os.environ, node),
    )
    try:
        status = await process.wait()
    except asyncio.CancelledError:
        await _end(process, within_s)
        raise
    raise Failed(
        f"`syncd serve` ended with status {status}",
        do="its own message stands before this one; it is started again",
    )


def child_environment(environ: Mapping[str, str], node: Path) -> dict[str, str]:
    """The child's environment: the same node folder, and whom to end with."""
    kept = {name: value for name, value in environ.items() if name not in _NOT_FOR_CHILDREN}
    return {**kept, "SYNCD_NODE_FOLDER": str(node), PARENT: str(os.getpid())}


async def _end(process: asyncio.subprocess.Process, within_s: float) -> None:
    if process.returncode is None:
        process.terminate()
    try:
        async with asyncio.timeout(within_s):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
