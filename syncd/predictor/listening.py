"""The server's sockets: inherited from a socket unit (`LISTEN_FDS`), or bound here."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import MutableMapping
from pathlib import Path
from typing import Final

from syncd.errors import PortBusy, UsageError
from syncd.paths import parse_address

FIRST_DESCRIPTOR: Final = 3
MAX_DESCRIPTORS: Final = 64
BACKLOG: Final = 1024


def inherited_sockets(environ: MutableMapping[str, str] = os.environ) -> list[socket.socket]:
    """The listening sockets that systemd, or another parent, passed to this very process; none: an empty list.

    The variables are taken away, so that no child thinks they were meant for it.

    Raises:
        UsageError: a descriptor is no listening stream socket.
    """
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    found = []
    for descriptor in range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + min(int(count), MAX_DESCRIPTORS)):
        try:
            each = socket.socket(fileno=descriptor)
            listens = each.type == socket.SOCK_STREAM and each.getsockopt(
                socket.SOL_SOCKET, socket.SO_ACCEPTCONN
            )
        except OSError as error:
            raise UsageError(
                f"descriptor {descriptor} of LISTEN_FDS is no socket: {error.strerror}"
            ) from error
        if not listens:
            raise UsageError(
                f"descriptor {descriptor} of LISTEN_FDS does not listen",
                do="write ListenStream= in the socket unit",
            )
        os.set_inheritable(descriptor, False)
        found.append(each)
    return found


def bind(address: str) -> socket.socket:
    """Listen on HOST:PORT or a Unix socket's path.

    Raises:
        PortBusy: another process listens there.
        UsageError: no such address, or this user may not.
    """
    place = parse_address(address)
    if isinstance(place, Path):
        return _bound(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), place, address)
    family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
    # The protocol is named because asyncio sends an answer's parts at once only on a socket that says it is TCP's.
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return _bound(made, place, address)


def _bound(made: socket.socket, place: Path | tuple[str, int], address: str) -> socket.socket:
    try:
        if isinstance(place, Path):
            _clear(place)
            made.bind(str(place))
            place.chmod(0o660)
        else:
            made.bind(place)
        made.listen(BACKLOG)
    except OSError as error:
        made.close()
        if error.errno == errno.EADDRINUSE:
            raise PortBusy(
                f"another process listens on {address}",
                why="another `syncd serve`, or the socket unit of this one",
                do="stop it, or write another [serve] listen; nothing was changed",
                address=address,
            ) from error
        raise UsageError(f"cannot listen on {address}: {error.strerror or error}") from error
    return made


def _clear(path: Path) -> None:
    """Remove a socket that nobody listens on: a killed server left it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
        except FileNotFoundError:
            return
        else:
            raise OSError(errno.EADDRINUSE, "Address already in use")
