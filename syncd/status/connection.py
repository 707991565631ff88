"""One HTTP connection: who is at its other end, and how long it may take to say what it wants."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any, Final

from uvicorn.protocols.http.h11_impl import H11Protocol

from syncd.status.limits import Limits

_UCRED: Final = struct.Struct("3i")


class Connection(H11Protocol):
    """uvicorn's, with the peer's user, a limit on connections, and on the time that a request's head takes.

    `peer_uid` (None over TCP) and `abort` are left in the scope's `state`.
    """

    limits = Limits()
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Too many: closed unseen."""
        super().connection_made(transport)
        if len(self.connections) > 2 * self.limits.connections:
            transport.abort()
            return
        self.app_state = {**self.app_state, "peer_uid": _peer_uid(transport), "abort": transport.abort}
        self._watch()

    def data_received(self, data: bytes) -> None:
        """A head that has begun must end in time, however slowly its bytes drip in."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """The next request's time begins when it does."""
        super().on_response_complete()
        if not self.transport.is_closing():
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """No timer outlives its connection."""
        self._unwatch()
        super().connection_lost(exc)

    def timeout_keep_alive_handler(self) -> None:
        """An idle client that has not even taken its answer is cut off: closing would wait for it."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        super().timeout_keep_alive_handler()

    def _watch(self) -> None:
        waits = self.cycle is None or self.cycle.response_complete
        if not waits or self.transport.is_closing():
            self._unwatch()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self.limits.head_s, self.transport.abort)

    def _unwatch(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def _peer_uid(transport: asyncio.BaseTransport) -> int | None:
    peer: Any = transport.get_extra_info("socket")
    if peer is None or peer.family != socket.AF_UNIX:
        return None
    _, uid, _ = _UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return int(uid)
