"""The routes of Open Inference V2 and their limits. Nothing here computes: predictions run in `answering`'s threads."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import syncd
from syncd.predictor.v2.answering import HEADER_LENGTH, Answered, Question, Workers, answer
from syncd.predictor.v2.metrics import CONTENT_TYPE, Metrics
from syncd.predictor.v2.models import ServedModel
from syncd.predictor.v2.refusals import Refusal, bad_request, busy, late, too_large, unknown

EXTENSIONS: Final = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "statistics",
)
SMALL_BODY: Final = 64 * 1024
SMALL_WITHIN_S: Final = 5.0
Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Limits:
    """What one server takes on: bytes of a body, seconds for an answer, threads and requests that wait for them."""

    max_body: int = 64 * 2**20
    within_s: float = 30.0
    threads: int = 1
    queue: int = 64

    @property
    def buffered(self) -> int:
        """Bytes of all bodies in memory at once."""
        return 4 * self.max_body


class Inference:
    """The app's state and its handlers."""

    def __init__(self, models: Sequence[ServedModel], limits: Limits) -> None:
        self.models = {model.name: model for model in models}
        self.limits = limits
        self.workers = Workers(limits.threads, limits.queue)
        self.metrics = Metrics(list(self.models.values()), lambda: self.workers.taken)
        self.draining = False
        self._buffered = 0

    def app(self) -> ASGIApp:
        """The ASGI app."""
        starlette = Starlette(
            routes=self._routes(),
            exception_handlers={HTTPException: _no_route, Refusal: _refused},
        )
        return _Closing(starlette, self)

    def _routes(self) -> list[BaseRoute]:
        one, versioned = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
        routes: list[BaseRoute] = [
            Route(f"{one}/infer", self._infer, methods=["POST"]),
            Route(f"{versioned}/infer", self._infer, methods=["POST"]),
            Route("/v2/models/stats", self._all_stats),
        ]
        for at in (one, versioned):
            routes += [
                Route(at, self._document(lambda model, version: model.metadata(version))),
                Route(f"{at}/config", self._document(lambda model, version: model.config(version))),
                Route(f"{at}/stats", self._stats),
                Route(f"{at}/ready", self._model_ready),
            ]
        routes += [
            Route("/v2", self._server),
            Route("/v2/", self._server),
            Route("/v2/health/live", self._live),
            Route("/v2/health/ready", self._ready),
            Route("/v2/repository/index", self._index, methods=["POST"]),
            Route("/livez", self._livez),
            Route("/readyz", self._readyz),
            Route("/metrics", self._metrics),
        ]
        return routes + [
            Route(path, _lacking(what), methods=["GET", "POST"])
            for path, what in (
                ("/v2/repository/models/{model}/{action}", "the node's daemon decides what is loaded"),
                ("/v2/trace/setting", "this server has no traces"),
                ("/v2/models/{model}/trace/setting", "this server has no traces"),
                ("/v2/logging", "logging is set where the server is started"),
                ("/v2/systemsharedmemory/{rest:path}", "this server has no shared memory"),
                ("/v2/cudasharedmemory/{rest:path}", "this server has no shared memory"),
            )
        ]

    # -- infer ----------------------------------------------------------------------------------------------------

    async def _infer(self, request: Request) -> Response:
        began = time.perf_counter()
        name = request.path_params["model"]
        label = name if name in self.models else "unknown"
        outcome = "failed"
        try:
            answered = await self._answered(request, self._model(name), began)
            outcome = "ok"
        except Refusal as refusal:
            outcome = refusal.code
            raise
        finally:
            self.metrics.requests.labels(label, outcome).inc()
        self.metrics.seconds.labels(label).observe(time.perf_counter() - began)
        self.metrics.queue.labels(label).observe(answered.queue_s)
        self.metrics.predict.labels(label).observe(answered.predict_s)
        return Response(answered.body, headers=answered.headers)

    async def _answered(self, request: Request, model: ServedModel, began: float) -> Answered:
        version = request.path_params.get("version")
        model.serving(version)
        self.workers.must_have_room()
        held = _Held(self)
        try:
            pieces = await self._body(request, held)
            self.metrics.received.labels(model.name).inc(held.bytes)
            question = Question(
                model=model,
                version=version,
                pieces=pieces,
                header_length=request.headers.get(HEADER_LENGTH),
                content_encoding=request.headers.get("content-encoding", ""),
                accept_encoding=request.headers.get("accept-encoding", ""),
                max_body=self.limits.max_body,
                asked=time.perf_counter(),
            )
            left = self.limits.within_s - (time.perf_counter() - began)
            return await self.workers.run(lambda: answer(question), max(left, 0.001))
        finally:
            held.release()

    async def _body(self, request: Request, held: _Held) -> list[bytes]:
        """The body's pieces, within the limits on bytes and time."""
        limit = self.limits.max_body
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > limit:
            raise too_large(f"the body has {length} bytes, this server takes {limit}")
        pieces: list[bytes] = []
        try:
            async with asyncio.timeout(self.limits.within_s):
                while True:
                    message = await request.receive()
                    if message["type"] != "http.request":
                        raise bad_request("the client went away within its request")
                    if piece := message.get("body"):
                        pieces.append(piece)
                        held.add(len(piece))
                        if held.bytes > limit:
                            raise too_large(
                                f"the body has more than the {limit} bytes that this server takes"
                            )
                    if not message.get("more_body"):
                        return pieces
        except TimeoutError as error:
            raise Refusal(
                408, "slow-client", f"the body was not there within {self.limits.within_s:g} s"
            ) from error

    # -- what there is --------------------------------------------------------------------------------------------

    def _model(self, name: str) -> ServedModel:
        model = self.models.get(name)
        if model is None:
            raise unknown(
                f"there is no model {name[:64]!r} here; there is {', '.join(self.models) or 'none'}"
            )
        return model

    def _document(self, told: Callable[[ServedModel, str | None], dict[str, Any]]) -> Handler:
        async def handler(request: Request) -> Response:
            return _json(told(self._model(request.path_params["model"]), request.path_params.get("version")))

        return handler

    async def _stats(self, request: Request) -> Response:
        model = self._model(request.path_params["model"])
        return _json({"model_stats": [model.stats(request.path_params.get("version"))]})

    async def _all_stats(self, _: Request) -> Response:
        ready = [model for model in self.models.values() if model.version is not None]
        return _json({"model_stats": [model.stats(None) for model in ready]})

    async def _model_ready(self, request: Request) -> Response:
        model = self._model(request.path_params["model"])
        serving = model.serving(request.path_params.get("version"))
        return _json({"name": model.name, "ready": True, "model_version": str(serving.version)})

    async def _server(self, _: Request) -> Response:
        return _json({"name": "syncd", "version": syncd.__version__, "extensions": list(EXTENSIONS)})

    async def _live(self, _: Request) -> Response:
        return _json({"live": True})

    async def _ready(self, _: Request) -> Response:
        missing = self.not_ready()
        if missing:
            raise Refusal(503, "not-ready", "; ".join(missing), retry=True)
        return _json({"ready": True})

    async def _index(self, request: Request) -> Response:
        asked = await self._small(request)
        entries = [model.index() for model in self.models.values()]
        if asked.get("ready") is True:
            entries = [entry for entry in entries if entry["state"] == "READY"]
        return _json(entries)

    async def _small(self, request: Request) -> dict[str, Any]:
        """The object in a short body; empty where there is none."""
        data = b""
        try:
            async with asyncio.timeout(SMALL_WITHIN_S):
                async for piece in request.stream():
                    data += piece
                    if len(data) > SMALL_BODY:
                        raise too_large(f"the body has more than {SMALL_BODY} bytes")
            found = json.loads(data) if data.strip() else {}
        except TimeoutError as error:
            raise late(f"the body was not there within {SMALL_WITHIN_S:g} s") from error
        except (ValueError, RecursionError) as error:
            raise bad_request(f"the request is not JSON: {error}") from error
        if not isinstance(found, dict):
            raise bad_request("the request is not a JSON object")
        return found

    def not_ready(self) -> list[str]:
        """What keeps this server from answering."""
        missing = [f"model {each.name}: {each.why}" for each in self.models.values() if each.version is None]
        return [*missing, "the server is ending"] if self.draining else missing

    async def _livez(self, _: Request) -> Response:
        return PlainTextResponse("alive\n")

    async def _readyz(self, _: Request) -> Response:
        missing = self.not_ready()
        text = "".join(f"not ready: {each}\n" for each in missing) or "ready\n"
        return PlainTextResponse(text, 503 if missing else 200)

    async def _metrics(self, _: Request) -> Response:
        return Response(await asyncio.to_thread(self.metrics.render), headers={"content-type": CONTENT_TYPE})


class _Held:
    """The bytes of one request's body in memory, counted against what all requests may hold."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference
        self.bytes = 0

    def add(self, count: int) -> None:
        """Raises Refusal, 429, where all requests together would hold too much."""
        self.bytes += count
        self._inference._buffered += count
        if self._inference._buffered > self._inference.limits.buffered:
            raise busy("too many large requests at once: try again")

    def release(self) -> None:
        """The body is gone."""
        self._inference._buffered -= self.bytes
        self.bytes = 0


class _Closing:
    """While the server drains every answer asks its client to connect anew: the next server takes the next request."""

    def __init__(self, app: ASGIApp, inference: Inference) -> None:
        self._app = app
        self._inference = inference

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def closing(message: Message) -> None:
            if message["type"] == "http.response.start" and self._inference.draining:
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        await self._app(scope, receive, closing)


def _json(content: Any, status: int = 200) -> Response:
    return Response(json.dumps(content).encode(), status, media_type="application/json")


def _lacking(what: str) -> Handler:
    async def handler(_: Request) -> Response:
        raise bad_request(f"not supported: {what}")

    return handler


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return Response(error.body(), error.status, error.headers(), media_type="application/json")


async def _no_route(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    what = {404: "there is no such route", 405: f"{request.method} is not for this route"}.get(
        status, "the request was refused"
    )
    refusal = Refusal(status, "unknown" if status == 404 else "bad-request", what)
    headers = dict(getattr(error, "headers", None) or {})
    return Response(refusal.body(), status, headers, media_type="application/json")
