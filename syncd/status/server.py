"""Listening: an own Unix socket of mode 0660, or a loopback address, served by uvicorn inside the daemon's loop."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Final

import uvicorn

from syncd.durable import make_folder
from syncd.errors import PortBusy, UsageError
from syncd.paths import is_loopback, parse_address
from syncd.status.access import Access
from syncd.status.app import build_app
from syncd.status.connection import Connection
from syncd.status.document import Source
from syncd.status.limits import Limits
from syncd.status.stream import Streams

GROUP: Final = "syncd"
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
            self.socket = _bind_path(place)
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
            self.socket = _bind_port(*place)

    def close(self) -> None:
        """Stop listening."""
        self.socket.close()
        if self._path is not None:
            with contextlib.suppress(FileNotFoundError):
                if self._path.stat().st_ino == self._inode:
                    self._path.unlink()


def _bind_port(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(MAX_CONNECTIONS)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise _busy(f"{host}:{port}") from error
        raise UsageError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return bound


def _bind_path(path: Path) -> socket.socket:
    """Bound under another name, opened to the group, then renamed: nobody ever sees it with another mode."""
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    aside = path.parent / f".{os.getpid()}"
    try:
        make_folder(path.parent, 0o750)
        if os.path.lexists(path) and not path.is_socket():
            raise ValueError("it is there and not a socket")
        if _answers(path):
            raise _busy(str(path))
        aside.unlink(missing_ok=True)
        bound.bind(str(aside))
        _give_to_group(aside)
        aside.chmod(0o660)
        bound.listen(MAX_CONNECTIONS)
        aside.replace(path)
    except (OSError, ValueError) as error:
        bound.close()
        aside.unlink(missing_ok=True)
        raise UsageError(
            f"cannot listen on {path}: {error}",
            do="write [status] listen with a path that this user may make, or a loopback HOST:PORT",
        ) from error
    except PortBusy:
        bound.close()
        raise
    return bound


def _answers(path: Path) -> bool:
    """Is somebody listening there? A socket that a killed daemon left does not answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:  # a full queue: somebody is there
            return True
        return True


def _busy(address: str) -> PortBusy:
    return PortBusy(
        f"another process listens on {address}",
        why="another daemon, probably",
        do="stop it, or give this one another [status] listen; nothing was changed",
        address=address,
    )


def _give_to_group(path: Path) -> None:
    """Root's daemon opens its socket to the group syncd where there is one; others keep their own group."""
    if os.geteuid() == 0:
        with contextlib.suppress(KeyError):
            os.chown(path, -1, grp.getgrnam(GROUP).gr_gid)


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
