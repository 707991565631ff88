"""What systemd is told, by hand: one datagram on $NOTIFY_SOCKET; without that variable nothing happens."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Mapping


class Notifier:
    """READY, STATUS, RELOADING, STOPPING and the watchdog's sign of life."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        self.watchdog_s = _watchdog_s(environ)

    def send(self, **facts: object) -> None:
        """Send `NAME=value` lines; a receiver that is gone or full is not our trouble."""
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        text = "\n".join(f"{name}={value}" for name, value in facts.items())
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(text.encode(), address)

    def ready(self, status: str) -> None:
        """Everything configured is running."""
        self.send(READY=1, STATUS=status)

    def reloading(self) -> None:
        """A reload began; `ready` ends it."""
        self.send(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)

    def stopping(self, within_s: float) -> None:
        """The drain began and may take this long."""
        self.send(STOPPING=1, STATUS="draining", EXTEND_TIMEOUT_USEC=int((within_s + 10) * 1e6))

    async def keep_alive(self) -> None:
        """Ping the watchdog from the loop at a third of its time: a loop that hangs stops pinging. Until cancelled."""
        if self.watchdog_s is None:
            return
        while True:
            self.send(WATCHDOG=1)
            await asyncio.sleep(self.watchdog_s / 3)


def _watchdog_s(environ: Mapping[str, str]) -> float | None:
    """Seconds of WATCHDOG_USEC, if it is meant for this process."""
    usec, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not usec.isdigit() or int(usec) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 1e6
