"""Progress on stderr: a bar with rate and time left on a terminal, plain lines elsewhere, nothing with `-q`."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from syncd.cli.common import Common, bytes_text

EVERY_S = 5.0


class Progress:
    """Called with (bytes done, bytes in all, what is being done), from any thread; a context manager."""

    def __init__(self, common: Common, what: str) -> None:
        self._common = common
        self._what = what
        self._bar: Any = None
        self._task: Any = None
        self._told = time.monotonic()
        self._started = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __call__(self, done: int, total: int | None = None, what: str | None = None) -> None:
        if self._common.quiet:
            return
        if sys.stderr.isatty():
            self._draw(done, total, what or self._what)
        elif (now := time.monotonic()) - self._told >= EVERY_S:
            self._told = now
            rate = done / max(now - self._started, 0.001)
            of = f" of {bytes_text(total)}" if total else ""
            self._common.say(f"{what or self._what}: {bytes_text(done)}{of}, {bytes_text(rate)}/s")

    def _draw(self, done: int, total: int | None, what: str) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                TextColumn,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(binary_units=True),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(what, total=total)
            self._bar.start()
        self._bar.update(self._task, completed=done, total=total, description=what)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
