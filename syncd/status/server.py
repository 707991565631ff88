"""Listening: an own Unix socket of mode 0660, or a loopback address, served by uvicorn inside the daemon's loop."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Final

import uvicorn

from syncd.errors import UsageError
from syncd.listening import bind
from syncd.paths import is_loopback, parse_address
from syncd.status.access import Access
from syncd.status.app import build_app
from syncd.status.connection import Connection
from syncd.status.document import Source
from syncd.status.limits import Limits
from syncd.status.stream import Streams

MAX_CONNECTIONS: Final = Limits().connections
CLOSE_WITHIN_S: Final = 2


class Listener:
    """A bound socket, and who may do what there; `close` removes a Unix socket's name if it is still ours.

    `token` counts over TCP alone. Raises UsageError for an address that others reach, if there is no token.
    """

    def __init__(self, address: str, token: str | None = None) -> None:
        self.address = address
        place = parse_address(address)
        self.access = Access(users=frozenset({0, os.geteuid()}))
        self._path: Path | None = None
        if isinstance(place, Path):
            self._path = place
            self.socket = self._bind()
            self._inode = place.stat().st_ino
        else:
            remote = not is_loopback(place[0])
            if remote and token is None:
                raise UsageError(
                    f"the status endpoint would listen on {place[0]}, which others can reach, without a token",
                    do="write [status] token_file, or listen on 127.0.0.1, ::1 or a Unix socket's path",
                )
            hosts = {"localhost", "127.0.0.1", "::1", place[0].lower()}
            if remote:
                hosts.add(socket.gethostname().lower())
            self.access = Access(frozenset(hosts), remote, token)
            self.socket = self._bind()

    def _bind(self) -> socket.socket:
        return bind(
            self.address, backlog=MAX_CONNECTIONS, section="status", holder="another daemon, probably"
        )

    def close(self) -> None:
        """Stop listening."""
        self.socket.close()
        if self._path is not None:
            with contextlib.suppress(FileNotFoundError):
                if self._path.stat().st_ino == self._inode:
                    self._path.unlink()


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: signals are the daemon's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Never called: no handler is installed."""


async def serve(listener: Listener, source: Source, limits: Limits | None = None) -> None:
    """Answer until cancelled; then connections get `CLOSE_WITHIN_S` to finish."""
    bounds = limits or Limits()

    class Bounded(Connection):
        limits = bounds

    streams = Streams(source.db, source.node_name, bounds)
    config = uvicorn.Config(
        build_app(source, listener.access, bounds, streams),
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        http=Bounded,
        server_header=False,
        limit_concurrency=bounds.connections,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=CLOSE_WITHIN_S,
    )
    server, bound = _Server(config), listener.socket.dup()
    try:
        await server.serve(sockets=[bound])
    finally:
        streams.close()
        if server.started:
            await server.shutdown(sockets=[bound])
        bound.close()
