"""Binding a listening socket, for daemon and server alike: a Unix socket of mode 0660, or HOST:PORT."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import socket
from pathlib import Path
from typing import Final

from syncd.durable import make_folder
from syncd.errors import PortBusy, UsageError
from syncd.paths import parse_address

GROUP: Final = "syncd"


def bind(address: str, *, backlog: int, section: str, holder: str) -> socket.socket:
    """Listen on HOST:PORT or on a Unix socket's path.

    Args:
        section: whose `listen` key says where, for the errors: "status" or "serve".
        holder: who probably listens there already, for the errors.
    Raises:
        PortBusy: another process listens there; nothing was changed.
        UsageError: no such address, or this user may not.
    """
    place = parse_address(address)
    busy = PortBusy(
        f"another process listens on {address}",
        why=holder,
        do=f"stop it, or write another [{section}] listen; nothing was changed",
        address=address,
    )
    try:
        return _bind_path(place, backlog) if isinstance(place, Path) else _bind_port(*place, backlog)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise busy from error
        raise UsageError(
            f"cannot listen on {address}: {getattr(error, 'strerror', None) or error}",
            do=f"write [{section}] listen with a path that this user may make, or a loopback HOST:PORT",
        ) from error


def _bind_port(host: str, port: int, backlog: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio sends an answer's parts at once only on a socket that says it is TCP's.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen(backlog)
    except OSError:
        bound.close()
        raise
    return bound


def _bind_path(path: Path, backlog: int) -> socket.socket:
    """Bound under another name, opened to the group, then renamed: nobody ever sees it with another mode."""
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    aside = path.parent / f".{os.getpid()}"
    try:
        make_folder(path.parent, 0o750)
        if os.path.lexists(path) and not path.is_socket():
            raise ValueError("it is there and not a socket")
        if _answers(path):
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        aside.unlink(missing_ok=True)
        bound.bind(str(aside))
        _give_to_group(aside)
        aside.chmod(0o660)
        bound.listen(backlog)
        aside.replace(path)
    except (OSError, ValueError):
        bound.close()
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise
    return bound


def _answers(path: Path) -> bool:
    """Is somebody listening there? A socket that a killed process left does not answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:  # a full queue: somebody is there
            return True
        return True


def _give_to_group(path: Path) -> None:
    """What root binds is opened to the group syncd where there is one; others keep their own group."""
    if os.geteuid() == 0:
        with contextlib.suppress(KeyError):
            os.chown(path, -1, grp.getgrnam(GROUP).gr_gid)
