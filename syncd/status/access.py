"""Who may do what: the Host header, the user behind a Unix socket, the token over TCP; checked before any route."""

from __future__ import annotations

import hmac
import ipaddress
from dataclasses import dataclass
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from syncd.status.answers import error

CHANGES: Final = "POST"
"""The one method that changes anything; the app has no route of another, and answers 405 by itself."""
_FREE: Final = frozenset({"/livez", "/readyz"})


@dataclass(frozen=True)
class Access:
    """The rules of one listener.

    hosts: names that a request over TCP may use; None on a Unix socket. remote: others reach the address, so that
    reading wants the token too. token: what changes must bring over TCP; None: nobody may change anything there.
    users: whose processes may change something over the Unix socket.
    """

    hosts: frozenset[str] | None = None
    remote: bool = False
    token: str | None = None
    users: frozenset[int] = frozenset()


class Guarded:
    """Lets a request through to `app` or refuses it; who asks is left in `scope["state"]["by"]`."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        state = scope.setdefault("state", {})
        refusal = (
            self._over_socket(scope, state) if self._access.hosts is None else self._over_tcp(scope, state)
        )
        if refusal is None:
            await self._app(scope, receive, send)
            return
        status, what, do = refusal
        headers = {"www-authenticate": 'Bearer realm="syncd"'} if status == 401 else {}
        await error(status, "denied", what, do, headers=headers)(scope, receive, send)

    def _over_socket(self, scope: Scope, state: dict[str, object]) -> tuple[int, str, str] | None:
        uid = state.get("peer_uid")
        state["by"] = f"uid {uid}"
        if scope["method"] != CHANGES or uid in self._access.users:
            return None
        return 403, f"user {uid} may look and not change anything", "ask as root or as the service's user"

    def _over_tcp(self, scope: Scope, state: dict[str, object]) -> tuple[int, str, str] | None:
        headers = Headers(scope=scope)
        if not self._knows(_host(headers.get("host", ""))):
            return (
                421,
                "the Host header names another machine",
                "ask for this machine by its own name or address",
            )
        state["by"] = "token"
        kind, _, given = headers.get("authorization", "").partition(" ")
        reads = scope["method"] != CHANGES
        if given:
            if kind.lower() == "bearer" and self._is_token(given.strip()):
                return None
            return 401, "the token is not the one of this daemon", "see [status] token_file"
        if scope["path"] in _FREE or (reads and not self._access.remote):
            return None
        if self._access.token is None:
            do = "write [status] token_file, or use the Unix socket"
            return 403, "this daemon has no token, so nothing can be changed over TCP", do
        return (
            401,
            "this wants the token",
            "send `Authorization: Bearer TOKEN` with what [status] token_file holds",
        )

    def _is_token(self, given: str) -> bool:
        token = self._access.token
        return token is not None and hmac.compare_digest(given.encode(), token.encode())

    def _knows(self, host: str) -> bool:
        """A web page of another name that was pointed at this address is refused; an address names nobody else.

        Where everything wants the token, this machine's name in any domain will do.
        """
        hosts = self._access.hosts or frozenset()
        if self._access.remote:
            return _is_address(host) or host.partition(".")[0] in hosts
        return host in hosts


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _host(header: str) -> str:
    """The name in a Host header, without its port."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower()
