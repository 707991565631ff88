"""`syncd serve`: models behind Open Inference V2, on sockets that may outlive this process; signals, drain, end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn, Protocol

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from syncd.errors import Failed
from syncd.listening import bind
from syncd.model.architecture import DEFAULT_ALLOWED
from syncd.predictor.inherited import inherited_sockets
from syncd.predictor.v2.app import Inference, Limits
from syncd.predictor.v2.models import ModelOptions, ServedModel
from syncd.predictor.v2.refusals import Refusal

MAX_CONNECTIONS: Final = 512
BACKLOG: Final = 1024
HEADER_WITHIN_S: Final = 10.0
KEEP_ALIVE_S: Final = 75
IDLE_WITHIN_S: Final = 1.0
LOAD_WITHIN_S: Final = 60.0
INTERRUPTED: Final = 130
_LOOK_EVERY_S: Final = 1.0

log = logging.getLogger("syncd.serve")


class Notifier(Protocol):
    """Who is told how the server is: systemd."""

    def ready(self, status: str) -> None:
        """It listens."""

    def stopping(self, within_s: float) -> None:
        """It drains."""

    def keep_alive(self) -> Awaitable[None]:
        """Sign of life until cancelled."""


@dataclass(frozen=True)
class ServeOptions:
    """What is served and where; `threads` 0: as many as the machine's cores allow."""

    node: Path
    models: tuple[ModelOptions, ...]
    listen: str = "127.0.0.1:8080"
    architectures: tuple[str, ...] = DEFAULT_ALLOWED
    limits: Limits = field(default_factory=Limits)
    shutdown_within_s: float = 30.0


def serve(options: ServeOptions, notifier: Notifier) -> int:
    """Answer until SIGTERM (0) or Ctrl-C (130), then drain.

    A socket unit's sockets win over `options.listen`: they stay open while this process is replaced.

    Raises:
        PortBusy, UsageError: it cannot listen; nothing was started.
        Failed: a device of a model is not there.
    """
    sockets = inherited_sockets() or [_bind(options.listen)]
    models: list[ServedModel] = []
    try:
        for each in options.models:
            models.append(ServedModel(each, options.node, options.architectures))
        return asyncio.run(_run(sockets, models, options, notifier))
    except Refusal as refusal:
        raise Failed(refusal.what, do="write another device in [[serve.models]]") from refusal
    finally:
        for model in models:
            model.close()
        for each_socket in sockets:
            each_socket.close()


async def _run(
    sockets: Sequence[socket.socket], models: Sequence[ServedModel], options: ServeOptions, notifier: Notifier
) -> int:
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, signals.put_nowait, number)
    inference = Inference(models, options.limits)
    server = _server(inference)
    ended = asyncio.create_task(signals.get())
    await _first_look(models, ended)
    answering = asyncio.create_task(server.serve([each.dup() for each in sockets]))
    keeping = [asyncio.create_task(_keep(notifier)), asyncio.create_task(_end_silent(server))]
    await server.listens.wait()
    addresses = ", ".join(_name(each) for each in sockets)
    log.info("serves", extra={"models": ",".join(inference.models), "listen": addresses, "pid": os.getpid()})
    notifier.ready(f"{', '.join(inference.models)} on {addresses}")
    while (number := await ended) == signal.SIGHUP:
        log.info("nothing is reloaded: restart the server; with its socket unit no request is lost")
        ended = asyncio.create_task(signals.get())
    notifier.stopping(options.shutdown_within_s)
    for each in sockets:
        each.close()
    await _drain(server, inference, options.shutdown_within_s)
    await answering
    for task in keeping:
        task.cancel()
    inference.workers.close()
    status = INTERRUPTED if number == signal.SIGINT else 0
    if inference.workers.taken:
        _leave(models, status)
    log.info("ended")
    return status


def _bind(address: str) -> socket.socket:
    holder = "another `syncd serve`, or the socket unit of this one"
    return bind(address, backlog=BACKLOG, section="serve", holder=holder)


async def _first_look(models: Sequence[ServedModel], ended: asyncio.Task[signal.Signals]) -> None:
    """Load what is installed before the first connection is taken: behind a socket unit clients wait meanwhile.

    A version that takes longer than `LOAD_WITHIN_S` is loaded behind the answer that it is not ready yet.
    """
    looking: asyncio.Future[Any] = asyncio.gather(*(asyncio.to_thread(model.start) for model in models))
    either: set[asyncio.Future[Any]] = {looking, ended}
    await asyncio.wait(either, timeout=LOAD_WITHIN_S, return_when=asyncio.FIRST_COMPLETED)


def _server(inference: Inference) -> _Server:
    config = uvicorn.Config(
        inference.app(),
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        http=Connection,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=1,
    )
    return _Server(config)


def _leave(models: Sequence[ServedModel], status: int) -> NoReturn:
    """End though a prediction does not: Python would wait for its thread for ever."""
    log.warning("ended with a prediction that does not end")
    for model in models:
        model.close()
    logging.shutdown()
    os._exit(status)


async def _keep(notifier: Notifier) -> None:
    await notifier.keep_alive()


def _name(each: socket.socket) -> str:
    address = each.getsockname()
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else str(address)


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: signals are ours."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listens = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Say when it is done."""
        await super().startup(sockets)
        self.listens.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Never called: no handler is installed."""


def _raw(refusal: Refusal, reason: bytes) -> bytes:
    """A whole answer for a connection that no app has seen."""
    body = refusal.body()
    head = b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n"
    extra = b"".join(f"{name}: {value}\r\n".encode() for name, value in refusal.headers().items())
    return head % (refusal.status, reason, len(body)) + extra + b"\r\n" + body


_TOO_MANY: Final = _raw(
    Refusal(503, "busy", f"{MAX_CONNECTIONS} connections are open already", retry=True),
    b"Service Unavailable",
)
_SLOW: Final = _raw(
    Refusal(408, "slow-client", f"no whole request came within {HEADER_WITHIN_S:g} s"), b"Request Timeout"
)


class Connection(H11Protocol):
    """uvicorn's connection with bounds that it lacks: how many there are, how long a request's head may take."""

    since = 0.0  # loop time of the connection's beginning or of its last answer's end

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """One too many is told so and closed."""
        super().connection_made(transport)
        self.since = self.loop.time()
        if len(self.connections) > MAX_CONNECTIONS:
            transport.write(_TOO_MANY)
            transport.close()

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def is_new(self) -> bool:
        """Whether its first request is still to come."""
        return self.cycle is None

    def end_if_silent(self) -> None:
        """Close it if a request was begun, or none ever was, and nothing whole has come for too long."""
        if not self.is_idle or self.loop.time() - self.since < HEADER_WITHIN_S:
            return
        begun = bool(self.conn.trailing_data[0]) or self.conn.their_state is h11.SEND_BODY
        if (self.is_new or begun) and not self.transport.is_closing():
            if self.conn.our_state is h11.IDLE:
                self.transport.write(_SLOW)
            self.transport.close()

    def on_response_complete(self) -> None:
        """Time begins anew."""
        self.since = self.loop.time()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is told so as JSON."""
        event = h11.Response(
            status_code=400,
            headers=[(b"content-type", b"application/json"), (b"connection", b"close")],
            reason=b"Bad Request",
        )
        data = h11.Data(data=json.dumps({"error": msg, "code": "bad-request"}).encode())
        for each in (event, data, h11.EndOfMessage()):
            self.transport.write(self.conn.send(each) or b"")
        self.transport.close()


def _connections(server: _Server) -> list[Connection]:
    return [each for each in server.server_state.connections if isinstance(each, Connection)]


async def _end_silent(server: _Server) -> None:
    while True:
        await asyncio.sleep(_LOOK_EVERY_S)
        for each in _connections(server):
            each.end_if_silent()


async def _drain(server: _Server, inference: Inference, within_s: float) -> None:
    """Accept nothing more, answer what was asked, let clients go with their next answer, then end uvicorn.

    A kept connection may have a request on its way that a close would lose: it is closed after a second of silence.
    """
    inference.draining = True
    for each in server.servers:
        each.close()
    loop = asyncio.get_running_loop()
    began = loop.time()
    await asyncio.sleep(0.1)  # what the loop accepted just now becomes a connection first
    while _connections(server) and loop.time() - began < within_s:
        if loop.time() - began > IDLE_WITHIN_S:
            for connection in _connections(server):
                if connection.is_idle:
                    connection.shutdown()
        await asyncio.sleep(0.02)
    server.should_exit = True
