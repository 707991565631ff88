"""The sockets that a socket unit, or another parent, passed to this process (`LISTEN_FDS`)."""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from typing import Final

from syncd.errors import UsageError

FIRST_DESCRIPTOR: Final = 3
MAX_DESCRIPTORS: Final = 64


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
