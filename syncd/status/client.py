"""Asks a daemon over its socket or loopback address; light: the standard library alone."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from syncd.errors import DaemonSilent, Failed, SyncdError
from syncd.paths import parse_address

MAX_ANSWER_BYTES: Final = 8 << 20
WITHIN_S: Final = 6.0
ACT_WITHIN_S: Final = 80.0


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, within_s: float) -> None:
        super().__init__("localhost", timeout=within_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def fetch_status(address: str, token: str | None = None) -> dict[str, Any]:
    """The object of `/v1/status`.

    Raises:
        DaemonSilent: nobody answers there, this user may not ask, or the answer is not the daemon's.
    """
    status, document = _ask(address, "GET", "/v1/status", token=token)
    if status == 200 and "models" in document:
        return document
    raise _told(document) or _silent(address, f"status {status}")


def send_command(
    address: str, model: str, command: str, version: int | None, token: str | None = None
) -> dict[str, Any]:
    """Tell the daemon what a person wants of a model; its answer.

    Raises:
        DaemonSilent: nobody answers there; its `nobody_listens` says whether a daemon is there at all.
        SyncdError: what the daemon says against it, of the same class as there.
    """
    body = b"" if version is None else json.dumps({"version": version}).encode()
    route = f"/v1/models/{quote(model, safe='')}/{command}"
    status, document = _ask(address, "POST", route, body, token=token, within_s=ACT_WITHIN_S)
    if status == 200:
        return document
    raise _told(document) or _silent(address, f"status {status}")


def _ask(
    address: str,
    method: str,
    route: str,
    body: bytes = b"",
    *,
    token: str | None = None,
    within_s: float = WITHIN_S,
) -> tuple[int, dict[str, Any]]:
    """One request; status and JSON object."""
    place = parse_address(address)
    connection = (
        _UnixConnection(place, within_s)
        if isinstance(place, Path)
        else http.client.HTTPConnection(place[0], place[1], timeout=within_s)
    )
    try:
        headers = {"authorization": f"Bearer {token}"} if token is not None else {}
        connection.request(method, route, body, headers)
        answer = connection.getresponse()
        document = json.loads(answer.read(MAX_ANSWER_BYTES))
        if not isinstance(document, dict):
            raise ValueError(f"status {answer.status}")
        return answer.status, document
    except PermissionError as error:
        raise DaemonSilent(
            f"this user may not ask {address}", do="join the group syncd, or ask as root", address=address
        ) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        there = not isinstance(error, FileNotFoundError | ConnectionRefusedError)
        raise _silent(address, str(error), there=there) from error
    finally:
        connection.close()


def _silent(address: str, why: str, *, there: bool = True) -> DaemonSilent:
    error = DaemonSilent(
        f"no daemon answers at {address}: {why}",
        why="it is not running, or its configuration has another [status] listen",
        do="start `syncd run`, or name its configuration with -c; predictors do not need it to serve",
        address=address,
    )
    error.nobody_listens = not there
    return error


def _told(document: dict[str, Any]) -> SyncdError | None:
    """The error that a daemon told, of the class that has its code here too; None if it is none."""
    told = document.get("error")
    if not isinstance(told, dict) or not isinstance(told.get("what"), str):
        return None
    code = told.get("code")
    kinds: list[type[SyncdError]] = [SyncdError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    kind = next((each for each in kinds if each.code == code), Failed)
    where = told.get("where")
    found = kind(told["what"], why=str(told.get("why", "")), do=str(told.get("do", "")))
    found.where = dict(where) if isinstance(where, dict) else {}
    return found
