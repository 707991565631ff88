"""The endpoint over real sockets: who may do what, what is bounded, what is streamed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from syncd.errors import UnknownModel, UsageError
from syncd.state import events
from syncd.state.db import Database
from syncd.status.limits import Limits
from syncd.status.server import Listener, serve
from syncd.status.token import read_token

TOKEN = "t" * 32


class Small:
    """As much of a daemon as the endpoint sees: one model, whose commands are written down."""

    node_name = "edge 7"

    def __init__(self, db: Database) -> None:
        self.db = db
        self.asked: list[tuple[str, str, int | None, str]] = []

    def document(self) -> dict[str, Any]:
        store = {"url": "file:///s", "reachable": True, "last_contact": None, "clock_skew_s": None}
        return {
            "node": self.node_name,
            "version": "0",
            "started_at": "2026-11-24T22:40:54+00:00",
            "store": store,
            "published": [],
            "models": [],
        }

    def not_ready(self) -> list[str]:
        return []

    async def obey(self, model: str, command: str, version: int | None, by: str) -> dict[str, Any]:
        if model != "m":
            raise UnknownModel(f"this node follows no model {model!r}")
        self.asked.append((model, command, version, by))
        return {"model": model, "version": version, "previous": None, "held": False, "pinned": None}


@pytest.fixture
def daemon(tmp_path: Path) -> Any:
    with Database(tmp_path / "state.db") as db:
        yield Small(db)


@contextlib.asynccontextmanager
async def served(
    daemon: Small, address: str, token: str | None = None, **limits: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the endpoint at `address`; over TCP a free port of it."""
    listener = Listener(address, token)
    task = asyncio.create_task(serve(listener, daemon, Limits(**limits)))
    try:
        if listener.access.hosts is None:
            transport = httpx.AsyncHTTPTransport(uds=address)
            client = httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=10)
        else:
            host, port = listener.socket.getsockname()[:2]
            base = f"http://127.0.0.1:{port}" if host == "0.0.0.0" else f"http://{host}:{port}"
            client = httpx.AsyncClient(base_url=base, timeout=10)
        async with client:
            yield client
    finally:
        task.cancel()
        await asyncio.wait({task}, timeout=5)
        listener.close()


async def test_over_the_socket_the_services_user_may_change_and_is_named(
    daemon: Small, tmp_path: Path
) -> None:
    async with served(daemon, str(tmp_path / "s")) as client:
        answer = await client.post("/v1/models/m/pin", json={"version": 4})
        assert (answer.status_code, answer.json()["version"]) == (200, 4)
        assert (await client.post("/v1/models/m/hold", content=b"{}")).status_code == 200
        by = f"uid {os.getuid()}"
        assert daemon.asked == [("m", "pin", 4, by), ("m", "hold", None, by)]


@pytest.mark.root
async def test_over_the_socket_another_user_may_look_and_not_change(daemon: Small, tmp_path: Path) -> None:
    import subprocess
    import sys

    path = tmp_path / "s"
    async with served(daemon, str(path)) as client:
        path.chmod(0o666)
        for folder in (tmp_path, *tmp_path.parents):
            folder.chmod(stat.S_IMODE(folder.stat().st_mode) | 0o055)
        script = (
            "import os, socket, sys\n"
            "s = socket.socket(socket.AF_UNIX); os.setuid(65534); s.connect(sys.argv[1])\n"
            "s.sendall(sys.argv[2].encode() + b' HTTP/1.1\\r\\nhost: x\\r\\nconnection: close\\r\\n\\r\\n')\n"
            "print(s.recv(9999).decode().split()[1])\n"
        )

        async def asks(line: str) -> str:
            run = [sys.executable, "-c", script, str(path), line]
            return (
                await asyncio.to_thread(subprocess.run, run, capture_output=True, text=True)
            ).stdout.strip()

        assert await asks("GET /v1/status") == "200"
        assert await asks("POST /v1/models/m/hold") == "403"
        assert daemon.asked == []
        assert (await client.post("/v1/models/m/hold")).status_code == 200


async def test_over_tcp_a_change_wants_the_token_and_looking_is_free(daemon: Small) -> None:
    async with served(daemon, "127.0.0.1:0", TOKEN) as client:
        assert (await client.get("/v1/status")).status_code == 200
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": TOKEN}):
            answer = await client.post("/v1/models/m/hold", headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "denied")
            assert answer.headers["www-authenticate"] == 'Bearer realm="syncd"'
        assert daemon.asked == []
        good = {"authorization": f"Bearer {TOKEN}"}
        assert (await client.post("/v1/models/m/hold", headers=good)).status_code == 200
        assert daemon.asked == [("m", "hold", None, "token")]


async def test_over_tcp_without_a_token_nothing_can_be_changed(daemon: Small) -> None:
    async with served(daemon, "127.0.0.1:0") as client:
        assert (await client.post("/v1/models/m/hold")).status_code == 403
        with_one = await client.post("/v1/models/m/hold", headers={"authorization": "Bearer x"})
        assert with_one.status_code == 401
        assert daemon.asked == []


async def test_where_others_reach_it_reading_wants_the_token_too(daemon: Small) -> None:
    async with served(daemon, "0.0.0.0:0", TOKEN) as client:
        assert (await client.get("/livez")).status_code == 200
        for route in ("/v1/status", "/v1/events", "/metrics", "/openapi.json"):
            assert (await client.get(route)).status_code == 401
        good = {"authorization": f"Bearer {TOKEN}"}
        assert (await client.get("/v1/status", headers=good)).status_code == 200


def test_an_address_that_others_reach_is_refused_without_a_token() -> None:
    with pytest.raises(UsageError, match="without a token"):
        Listener("0.0.0.0:0")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "", "127.0.0.1.evil.example", "[::2]"])
async def test_a_request_for_another_host_is_refused(daemon: Small, host: str) -> None:
    async with served(daemon, "127.0.0.1:0", TOKEN) as client:
        headers = {"host": host, "authorization": f"Bearer {TOKEN}"}
        assert (await client.post("/v1/models/m/hold", headers=headers)).status_code == 421
        assert daemon.asked == []


@pytest.mark.parametrize(
    ("route", "body", "status"),
    [
        ("/v1/models/m/pin", b"", 400),
        ("/v1/models/m/pin", b"{", 400),
        ("/v1/models/m/pin", b"[" * 3000, 400),
        ("/v1/models/m/pin", b"[]", 400),
        ("/v1/models/m/pin", b'{"version": 0}', 400),
        ("/v1/models/m/pin", b'{"version": true}', 400),
        ("/v1/models/m/pin", b'{"version": "4"}', 400),
        ("/v1/models/m/pin", b'{"version": 4.5}', 400),
        ("/v1/models/m/pin", b'{"version": null}', 400),
        ("/v1/models/m/pin", b'{"version": 1e999}', 400),
        ("/v1/models/m/pin", b'{"version": 4, "x": 1}', 400),
        ("/v1/models/m/pin", b" " * 5000, 413),
        ("/v1/models/m/hold", b'{"version": 4}', 400),
        ("/v1/models/x/hold", b"", 404),
        ("/v1/models/m/dance", b"", 404),
        ("/v1/status", b"", 405),
    ],
)
async def test_a_bad_request_is_told_and_the_next_is_served(
    daemon: Small, tmp_path: Path, route: str, body: bytes, status: int
) -> None:
    async with served(daemon, str(tmp_path / "s")) as client:
        answer = await client.post(route, content=body)
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"code", "what", "where", "why", "do"}
        assert daemon.asked == []
        assert (await client.post("/v1/models/m/hold")).status_code == 200


async def test_a_head_or_a_body_that_never_ends_is_given_up(daemon: Small, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    async with served(daemon, path, head_s=0.3, body_s=0.3) as client:
        reader, writer = await asyncio.open_unix_connection(path)
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"GET /livez HTTP/1.1\r\nhost:")
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"POST /v1/models/m/hold HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n{")
        assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 408")
        writer.close()
        assert daemon.asked == []
        assert (await client.get("/livez")).status_code == 200


async def test_connections_beyond_the_limit_are_refused_and_the_others_served(
    daemon: Small, tmp_path: Path
) -> None:
    path = str(tmp_path / "s")
    async with served(daemon, path, connections=3) as client:
        assert (await client.get("/livez")).status_code == 200
        many = [await asyncio.open_unix_connection(path) for _ in range(8)]
        closed = [await asyncio.wait_for(reader.read(), 5) for reader, _ in many[5:]]
        assert closed == [b"", b"", b""]
        assert (await client.get("/livez")).status_code == 503
        for _, writer in many:
            writer.close()

        async def served_again() -> None:
            while True:
                if (await client.get("/livez")).status_code == 200:
                    return
                await asyncio.sleep(0.02)

        await asyncio.wait_for(served_again(), 5)


async def lines(answer: httpx.Response, count: int) -> list[dict[str, Any]]:
    """The next events of a stream; each with the id of its message."""
    found: list[dict[str, Any]] = []
    number = None
    async with asyncio.timeout(10):
        async for line in answer.aiter_lines():
            if line.startswith("id: "):
                number = line[4:]
            if line.startswith("data: "):
                found.append({**json.loads(line[6:]), "_id": number})
                number = None
                if len(found) == count:
                    break
    return found


async def test_events_come_as_cloudevents_as_they_happen_and_go_on_after_the_last_one_seen(
    daemon: Small, tmp_path: Path
) -> None:
    events.record(daemon.db, "install", "m", version=1)
    async with served(daemon, str(tmp_path / "s")) as client:
        async with client.stream("GET", "/v1/events") as answer:
            assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
            reading = asyncio.create_task(lines(answer, 1))
            await asyncio.sleep(0)
            while not reading.done():  # from now on: what was recorded before the stream began is not in it
                events.record(daemon.db, "swap", "m", version=1)
                await asyncio.wait({reading}, timeout=0.3)
            [first] = reading.result()
        assert {name: first[name] for name in ("specversion", "source", "type", "subject", "data")} == {
            "specversion": "1.0",
            "source": "urn:syncd:node:edge%207",
            "type": "syncd.swap",
            "subject": "m",
            "data": {"version": 1},
        }
        assert first["id"] == first["_id"] != "1"
        newest = events.newest(daemon.db)
        events.record(daemon.db, "rollback", "m", version=1)
        async with client.stream("GET", "/v1/events", headers={"last-event-id": str(newest)}) as answer:
            [then] = await lines(answer, 1)
        assert (then["type"], then["id"]) == ("syncd.rollback", str(newest + 1))
        async with client.stream("GET", "/v1/events", params={"after": "0"}) as answer:
            every = await lines(answer, newest + 1)
        assert [int(each["id"]) for each in every] == list(range(1, newest + 2))
        batch = {"accept": "application/cloudevents-batch+json"}
        answer = await client.get("/v1/events", headers=batch)
        assert [each["id"] for each in answer.json()] == [each["id"] for each in every]


async def test_who_comes_back_too_late_is_told_that_events_are_missing(
    daemon: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "KEPT", 3)
    for _ in range(9):
        events.record(daemon.db, "poll", "m")
    async with served(daemon, str(tmp_path / "s")) as client:
        for last in ("2", "99"):
            async with client.stream("GET", "/v1/events", headers={"last-event-id": last}) as answer:
                found = await lines(answer, 4)
            assert [(each["type"], each["_id"]) for each in found] == [
                ("syncd.forgotten", None), ("syncd.poll", "7"), ("syncd.poll", "8"), ("syncd.poll", "9")
            ]  # fmt: skip
        for bad in ("-1", "x", "1e3", "9" * 17):
            for headers in ({}, {"last-event-id": "1"}):
                answer = await client.get("/v1/events", params={"after": bad}, headers=headers)
                assert answer.status_code == 400


async def test_streams_are_bounded_in_number_and_time_and_one_that_ends_makes_room(
    daemon: Small, tmp_path: Path
) -> None:
    async with served(daemon, str(tmp_path / "s"), streams=1, stream_s=1.0, heartbeat_s=0.2) as client:
        async with client.stream("GET", "/v1/events") as answer:
            refused = await client.get("/v1/events")
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
            text = "".join([piece async for piece in answer.aiter_text()])
        assert text.startswith("retry: 2000\n\n: still here\n\n")
        async with client.stream("GET", "/v1/events") as answer:
            assert answer.status_code == 200

        async def free() -> None:  # the one above was left half-way: its place is free once that is seen
            while True:
                async with client.stream("GET", "/v1/events") as answer:
                    if answer.status_code == 200:
                        return
                await asyncio.sleep(0.02)

        await asyncio.wait_for(free(), 5)


async def test_a_client_that_takes_nothing_is_cut_off(daemon: Small, tmp_path: Path) -> None:
    for _ in range(300):
        events.record(daemon.db, "poll", "m", reason="x" * 5000)
    path = str(tmp_path / "s")
    async with served(daemon, path, streams=1, stall_s=0.3) as client:
        with socket.socket(socket.AF_UNIX) as lazy:
            lazy.connect(path)
            lazy.sendall(b"GET /v1/events?after=0 HTTP/1.1\r\nhost: x\r\n\r\n")

            async def free() -> None:
                while True:
                    async with client.stream("GET", "/v1/events") as answer:
                        if answer.status_code == 200:
                            return
                    await asyncio.sleep(0.05)

            await asyncio.wait_for(free(), 10)


def test_a_token_file_that_others_can_read_or_that_holds_no_token_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_token(path)
    path.write_text(TOKEN + "\n")
    path.chmod(0o644)
    with pytest.raises(UsageError, match="mode 0644: others can read"):
        read_token(path)
    path.chmod(0o640)
    assert read_token(path) == TOKEN
    for bad in ("", "short", "two words of a token", "t" * 5000, "ü" * 20):
        path.write_text(bad)
        with pytest.raises(UsageError, match="holds no token"):
            read_token(path)
