"""Log lines for people on stderr: time, level, room, words, then what it is about as name=value."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping
from typing import Final

from syncd.errors import SyncdError

_PLAIN: Final = frozenset(logging.LogRecord("", 0, "", 0, "", (), None).__dict__) | {
    "message",
    "asctime",
    "taskName",
}
_PRIORITY: Final = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}
_LOUD: Final = (
    "apscheduler",
    "httpx",
    "httpcore",
    "asyncio",
    "uvicorn",
    "tuf",
    "securesystemslib",
    "watchdog",
)


class LineFormatter(logging.Formatter):
    """`2026-11-24T22:40:55Z info  edge  poll answered  model=resnet50 version=42`.

    Under the journal the time is left out and systemd's priority is put before the line. Names given as `extra=`
    follow as name=value; a SyncdError is told by its code and its own words.
    """

    def __init__(self, *, journal: bool) -> None:
        super().__init__(datefmt="%Y-%m-%dT%H:%M:%SZ")
        self.converter = time.gmtime
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        """One line, or with a traceback several."""
        room = record.name.removeprefix("syncd.").split(".")[0]
        about = {name: value for name, value in record.__dict__.items() if name not in _PLAIN}
        line = f"{record.levelname.lower():<7} {room:<9} {record.getMessage()}"
        if about:
            line += "  " + " ".join(f"{name}={_shown(value)}" for name, value in about.items())
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, SyncdError):
            line += "\n" + str(error)
        elif record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        if self._journal:
            priority = f"<{_PRIORITY.get(record.levelno, 6)}>"
            return "\n".join(priority + each for each in line.splitlines())
        return f"{self.formatTime(record, self.datefmt)} {line}"


def _shown(value: object) -> str:
    text = str(value)
    return repr(text) if any(letter.isspace() for letter in text) or not text.isprintable() else text


def start_logging(
    *, verbose: bool = False, quiet: bool = False, environ: Mapping[str, str] = os.environ
) -> None:
    """Send everything to stderr: syncd's own from INFO (-v: DEBUG, -q: WARNING), libraries' from WARNING."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(journal="JOURNAL_STREAM" in environ))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("syncd").setLevel(
        logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    )
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.WARNING)
