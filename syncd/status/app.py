"""The HTTP routes: GET reads, there is nothing else yet."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, Final

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from syncd.status import metrics
from syncd.status.document import Source

ANSWER_WITHIN_S: Final = 5.0
_HEADERS: Final = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


def build_app(source: Source, *, hosts: frozenset[str] | None = None) -> ASGIApp:
    """The app; `hosts` are the names that a request over TCP may use, None on a Unix socket."""

    async def livez(_: Request) -> Response:
        return PlainTextResponse("alive\n", headers=_HEADERS)

    async def readyz(_: Request) -> Response:
        missing = await _asked(source.not_ready)
        text = "ready\n" if not missing else "".join(f"not ready: {each}\n" for each in missing)
        return PlainTextResponse(text, 503 if missing else 200, headers=_HEADERS)

    async def status(_: Request) -> Response:
        return _json(await _asked(source.document))

    async def metric(_: Request) -> Response:
        body, kind = await asyncio.to_thread(metrics.render, await _asked(source.document))
        return Response(body, media_type=kind, headers=_HEADERS)

    routes = [
        Route("/livez", livez),
        Route("/readyz", readyz),
        Route("/v1/status", status),
        Route("/metrics", metric),
    ]
    app: ASGIApp = Starlette(routes=routes, exception_handlers={HTTPException: _refusal, TimeoutError: _late})
    return app if hosts is None else _HostChecked(app, hosts)


async def _asked(question: Callable[[], Any]) -> Any:
    async with asyncio.timeout(ANSWER_WITHIN_S):
        return await asyncio.to_thread(question)


def _json(content: Any, status: int = 200) -> Response:
    body = json.dumps(content, default=str).encode() + b"\n"
    return Response(body, status, media_type="application/json", headers=_HEADERS)


def _error(status: int, code: str, what: str, do: str) -> Response:
    return _json({"error": {"code": code, "what": what, "where": {}, "why": "", "do": do}}, status)


async def _refusal(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    what = {404: "there is no such route", 405: "this route only reads"}.get(
        status, "the request was refused"
    )
    return _error(status, "usage", what, "GET /livez, /readyz, /v1/status or /metrics")


async def _late(_: Request, __: Exception) -> Response:
    return _error(503, "busy", f"no answer within {ANSWER_WITHIN_S:g} s", "ask again")


class _HostChecked:
    """Refuses a request whose Host is not this machine's loopback: a web page cannot talk to the daemon."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str]) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _host(Headers(scope=scope).get("host", "")) not in self._hosts:
            refusal = _error(
                421, "usage", "the Host header names another machine", "ask for 127.0.0.1 or localhost"
            )
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _host(header: str) -> str:
    """The name in a Host header, without its port."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower()
