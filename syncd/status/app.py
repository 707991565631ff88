"""The HTTP routes: GET reads, POST tells one followed model what a person wants."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from syncd.errors import InternalError, SyncdError, UsageError
from syncd.state.wishes import COMMANDS, WITH_VERSION
from syncd.status import metrics, openapi
from syncd.status.access import CHANGES, Access, Guarded
from syncd.status.answers import HEADERS, error, json_answer, told
from syncd.status.document import Source
from syncd.status.limits import Limits
from syncd.status.stream import Streams

MAX_VERSION: Final = 2**53 - 1


def build_app(source: Source, access: Access, limits: Limits, streams: Streams) -> ASGIApp:
    """The app behind its guard."""

    async def asked(question: Callable[[], Any]) -> Any:
        async with asyncio.timeout(limits.answer_s):
            return await asyncio.to_thread(question)

    async def livez(_: Request) -> Response:
        return PlainTextResponse("alive\n", headers=HEADERS)

    async def readyz(_: Request) -> Response:
        missing = await asked(source.not_ready)
        text = "ready\n" if not missing else "".join(f"not ready: {each}\n" for each in missing)
        return PlainTextResponse(text, 503 if missing else 200, headers=HEADERS)

    async def status(_: Request) -> Response:
        return json_answer(await asked(source.document))

    async def metric(_: Request) -> Response:
        body, kind = await asyncio.to_thread(metrics.render, await asked(source.document))
        return Response(body, media_type=kind, headers=HEADERS)

    async def description(_: Request) -> Response:
        return json_answer(openapi.document())

    async def command(request: Request) -> Response:
        name, model = request.url.path.rpartition("/")[2], request.path_params["model"]
        version = await _version(request, name, limits)
        async with asyncio.timeout(limits.act_s):
            result = await source.obey(model, name, version, str(request.state.by))
        return json_answer(result)

    routes = [
        Route("/livez", livez),
        Route("/readyz", readyz),
        Route("/v1/status", status),
        Route("/v1/events", streams, methods=["GET"]),
        Route("/metrics", metric),
        Route("/openapi.json", description),
        *(Route(f"/v1/models/{{model}}/{each}", command, methods=["POST"]) for each in COMMANDS),
    ]
    if any(each.methods is None or each.methods - {"GET", "HEAD", CHANGES} for each in routes):
        raise AssertionError("a route has a method that the guard does not know")
    handlers: dict[Any, Any] = {
        HTTPException: _refusal,
        TimeoutError: _late,
        SyncdError: _failed,
        ClientDisconnect: _late,
        Exception: _bug,
    }
    return Guarded(Starlette(routes=routes, exception_handlers=handlers), access)


async def _version(request: Request, command: str, limits: Limits) -> int | None:
    """The version in the body: an object, `{"version": N}` for pin and approve, else `{}` or nothing at all."""
    body = b""
    try:
        async with asyncio.timeout(limits.body_s):
            async for piece in request.stream():
                body += piece
                if len(body) > limits.body:
                    raise HTTPException(413)
    except TimeoutError:
        raise HTTPException(408) from None
    try:
        document = json.loads(body) if body.strip() else {}
    except (ValueError, RecursionError) as problem:
        raise UsageError("the body is no JSON", do='send {"version": N}, or nothing') from problem
    allowed = {"version"} if command in WITH_VERSION else set()
    if not isinstance(document, dict) or set(document) != allowed:
        what = '{"version": N}' if allowed else "{} or nothing"
        raise UsageError(f"the body of {command} is {what}", do="see /openapi.json")
    version = document.get("version")
    if isinstance(version, float) and version.is_integer():  # 42.0 is 42 in JSON
        version = int(version)
    if allowed and (type(version) is not int or not 1 <= version <= MAX_VERSION):
        raise UsageError(f"version is {str(version)[:40]!r}", do="a version is a whole number from 1 on")
    return version


async def _refusal(_: Request, problem: Exception) -> Response:
    status = problem.status_code if isinstance(problem, HTTPException) else 500
    headers = problem.headers if isinstance(problem, HTTPException) else None
    what = {
        404: "there is no such route",
        405: "this route does not do that",
        408: "the body did not arrive in time",
        413: "the body is too large",
    }.get(status, "the request was refused")
    return error(status, "usage", what, "/openapi.json lists what there is", headers=headers)


async def _failed(_: Request, problem: Exception) -> Response:
    assert isinstance(problem, SyncdError)
    return told(problem)


async def _late(_: Request, __: Exception) -> Response:
    return error(
        503, "busy", "no answer within the time that there is", "ask again", headers={"retry-after": "1"}
    )


async def _bug(_: Request, problem: Exception) -> Response:
    return told(InternalError(f"{type(problem).__name__}", why="a bug in syncd", do="see the daemon's log"))
