"""Asks a daemon over its socket or loopback address; light: the standard library alone."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any, Final

from syncd.errors import DaemonSilent
from syncd.paths import parse_address

MAX_ANSWER_BYTES: Final = 8 << 20
WITHIN_S: Final = 6.0


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=WITHIN_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(WITHIN_S)
        self.sock.connect(str(self._path))


def fetch_status(address: str) -> dict[str, Any]:
    """The object of `/v1/status`.

    Raises:
        DaemonSilent: nobody answers there, this user may not ask, or the answer is not the daemon's.
    """
    place = parse_address(address)
    connection = (
        _UnixConnection(place)
        if isinstance(place, Path)
        else http.client.HTTPConnection(place[0], place[1], timeout=WITHIN_S)
    )
    try:
        connection.request("GET", "/v1/status")
        answer = connection.getresponse()
        document = json.loads(answer.read(MAX_ANSWER_BYTES))
        if answer.status != 200 or not isinstance(document, dict) or "models" not in document:
            raise ValueError(f"status {answer.status}")
    except PermissionError as error:
        raise DaemonSilent(
            f"this user may not ask {address}", do="join the group syncd, or ask as root", address=address
        ) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DaemonSilent(
            f"no daemon answers at {address}: {error}",
            why="it is not running, or its configuration has another [status] listen",
            do="start `syncd run`, or name its configuration with -c; predictors do not need it to serve",
            address=address,
        ) from error
    finally:
        connection.close()
    return document
