"""A server on real TCP that shows a folder and misbehaves by name, and a proxy that loses answers.

with FaultServer(folder) as server:
    server.fault = Fault.SHORT_BODY            # for every request from now on
    server.fail_next(Fault.STALLED, key="a")   # for the next request for one key
"""

from __future__ import annotations

import contextlib
import enum
import re
import select
import shutil
import socket
import socketserver
import struct
import threading
from collections import deque
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit


class Fault(enum.Enum):
    """What goes wrong; the head of the answer is in order unless it says otherwise."""

    RESET_HALF_WAY = "half the body, then a TCP reset"
    SHORT_BODY = "a whole, well-formed answer with half the bytes"
    WRONG_RANGE = "206 with a range that was not asked for"
    IGNORES_RANGE = "200 with everything where a range was asked for"
    STALLED = "half the body, then nothing, the connection open"
    ERROR_500 = "500 with a page"
    OLD_SNAPSHOT = "what the folder held at `remember()`, in a well-formed answer"
    TRICKLING = "the body a byte at a time, each before a read would time out"
    ENDLESS_BODY = "a chunked body without end"
    CAPTIVE_PORTAL = "200 with somebody's log-in page"


@dataclass(frozen=True)
class Request:
    """One request as the server saw it; header names in lower case."""

    method: str
    key: str
    headers: dict[str, str]


class FaultServer:
    """Serves `folder` honestly over HTTP/1.1 (GET, HEAD, Range, If-None-Match) until told to fail."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fault: Fault | None = None
        self.requests: list[Request] = []
        self.stopping = threading.Event()
        self._next: deque[tuple[Fault, str | None]] = deque()
        self._snapshot = folder.with_name(f"{folder.name}-old")
        self._server = _listen(_Handler)
        self._server.faults = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def fail_next(self, fault: Fault, *, times: int = 1, key: str | None = None) -> None:
        """Let the next `times` requests (for `key`, if given) fail so; then be honest again."""
        self._next.extend([(fault, key)] * times)

    def remember(self) -> None:
        """Keep a copy of the folder as it is now: what OLD_SNAPSHOT shows."""
        shutil.rmtree(self._snapshot, ignore_errors=True)
        shutil.copytree(self.folder, self._snapshot)

    def fault_for(self, key: str) -> Fault | None:
        """The fault that this request meets; one that `fail_next` planned is used up."""
        for i, (fault, wanted) in enumerate(self._next):
            if wanted in (None, key):
                del self._next[i]
                return fault
        return self.fault

    def path_for(self, key: str, fault: Fault | None) -> Path:
        return (self._snapshot if fault is Fault.OLD_SNAPSHOT else self.folder) / key

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        with contextlib.suppress(ConnectionError, BrokenPipeError, TimeoutError):
            while self._one():
                pass

    def _one(self) -> bool:
        """Answer one request; False when the connection is over."""
        line = self.rfile.readline(8192)
        if not line.strip():
            return False
        method, target, _ = line.decode("latin-1").split(" ", 2)
        headers: dict[str, str] = {}
        while (line := self.rfile.readline(8192)).strip():
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
        server: FaultServer = self.server.faults  # type: ignore[attr-defined]
        key = urlsplit(target).path.lstrip("/")
        server.requests.append(Request(method, key, headers))
        fault = server.fault_for(key)
        return self._answer(server, method, key, headers, fault)

    def _answer(
        self, server: FaultServer, method: str, key: str, headers: dict[str, str], fault: Fault | None
    ) -> bool:
        if fault is Fault.ERROR_500:
            return self._send("500 Internal Server Error", b"<h1>sorry</h1>", method, type_="text/html")
        if fault is Fault.CAPTIVE_PORTAL:
            return self._send("200 OK", b"<html>Welcome! Log in to go on.</html>", method, type_="text/html")
        if fault is Fault.ENDLESS_BODY:
            return self._endless(server)
        path = server.path_for(key, fault)
        try:
            data = path.read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return self._send("404 Not Found", b"none", method)
        etag = f'"{path.stat().st_mtime_ns:x}-{len(data):x}"'
        modified = formatdate(path.stat().st_mtime, usegmt=True)
        more = [f"ETag: {etag}", f"Date: {formatdate(usegmt=True)}", f"Last-Modified: {modified}"]
        if headers.get("if-none-match") == etag:
            return self._send("304 Not Modified", b"", method, more)
        status = "200 OK"
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", headers.get("range", ""))
        if wanted and fault is not Fault.IGNORES_RANGE:
            start, end = int(wanted[1]), min(int(wanted[2]), len(data) - 1)
            if start > end:
                return self._send("416 Range Not Satisfiable", b"", method)
            if fault is Fault.WRONG_RANGE:
                start, end = (start - 1, end - 1) if start else (start + 1, end + 1)
            status = "206 Partial Content"
            more.append(f"Content-Range: bytes {start}-{end}/{len(data)}")
            data = data[start : end + 1]
        return self._send_faultily(server, status, data, method, more, fault)

    def _send_faultily(
        self, server: FaultServer, status: str, data: bytes, method: str, more: list[str], fault: Fault | None
    ) -> bool:
        half = data[: len(data) // 2]
        if fault is Fault.SHORT_BODY:
            return self._send(status, half, method, more)
        if fault is Fault.TRICKLING:
            self._send(status, b"", method, more, length=len(data))
            for i in range(len(data)):
                if server.stopping.wait(0.05):
                    break
                self.wfile.write(data[i : i + 1])
            return False
        if fault not in (Fault.RESET_HALF_WAY, Fault.STALLED):
            return self._send(status, data, method, more)
        self._send(status, half, method, more, length=len(data))
        if fault is Fault.STALLED:
            while not server.stopping.wait(0.02) and not self._is_gone():
                pass
        else:
            _reset(self.connection)
        return False

    def _send(
        self,
        status: str,
        data: bytes,
        method: str,
        more: list[str] | None = None,
        *,
        length: int | None = None,
        type_: str = "application/octet-stream",
    ) -> bool:
        head = [
            f"HTTP/1.1 {status}",
            f"Content-Length: {len(data) if length is None else length}",
            *(more or []),
        ]
        if not any(line.startswith("Content-Type") for line in head):
            head.append(f"Content-Type: {type_}")
        body = b"" if method == "HEAD" else data
        self.wfile.write("\r\n".join(head).encode() + b"\r\n\r\n" + body)
        return True

    def _endless(self, server: FaultServer) -> bool:
        self.wfile.write(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\n"
        )
        chunk = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
        while not server.stopping.is_set():
            self.wfile.write(chunk)
        return False

    def _is_gone(self) -> bool:
        readable, _, _ = select.select([self.connection], [], [], 0)
        return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)


class AnswerLoser:
    """A TCP proxy before an S3 server. Armed, it lets the next PUT be stored and loses the answer.

    `lose_next(before=True)` loses the request instead: nothing is stored. `puts` counts the PUTs that it saw.
    """

    def __init__(self, endpoint: str) -> None:
        host, _, port = endpoint.removeprefix("http://").partition(":")
        self.upstream = (host, int(port))
        self.puts = 0
        self.stopping = threading.Event()
        self._losing: deque[bool] = deque()
        self._server = _listen(_ProxyHandler)
        self._server.proxy = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def lose_next(self, *, times: int = 1, before: bool = False) -> None:
        self._losing.extend([before] * times)

    def take(self) -> bool | None:
        """Called for each PUT: None to let it be, else what `before` was."""
        self.puts += 1
        return self._losing.popleft() if self._losing else None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()


class _ProxyHandler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        proxy: AnswerLoser = self.server.proxy  # type: ignore[attr-defined]
        client: socket.socket = self.request
        with contextlib.suppress(OSError), socket.create_connection(proxy.upstream, timeout=5) as upstream:
            losing = False
            while not proxy.stopping.is_set():
                readable, _, _ = select.select([client, upstream], [], [], 0.05)
                if client in readable:
                    data = client.recv(1 << 16)
                    if not data:
                        return
                    before = proxy.take() if data.startswith(b"PUT ") else None
                    if before:
                        return _reset(client)
                    losing = losing or before is False
                    upstream.sendall(data)
                if upstream in readable:
                    data = upstream.recv(1 << 16)
                    if not data:
                        return
                    if losing and not data.startswith(b"HTTP/1.1 100"):
                        return _reset(client)
                    client.sendall(data)


def _listen(handler: type[socketserver.BaseRequestHandler]) -> socketserver.ThreadingTCPServer:
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.block_on_close = False
    return server


def _reset(connection: socket.socket) -> None:
    """Close with RST: linger on, for zero seconds."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
