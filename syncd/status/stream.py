"""`/v1/events`: what happened, as CloudEvents over server-sent events; resumed by Last-Event-ID, bounded in number."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime
from typing import Any, Final

from starlette.datastructures import Headers, QueryParams
from starlette.types import Receive, Scope, Send

from syncd.state import events
from syncd.state.db import Database
from syncd.status.answers import HEADERS, error, json_answer
from syncd.status.limits import Limits

BATCH: Final = 100
MAX_BATCH: Final = 1000
LOOK_S: Final = 0.2
RETRY_MS: Final = 2000
STREAM_TYPE: Final = "text/event-stream; charset=utf-8"
BATCH_TYPE: Final = "application/cloudevents-batch+json"
_MAX_ID: Final = 2**53 - 1


def cloud_event(event: events.Event, node: str) -> dict[str, Any]:
    """One event as CloudEvents 1.0 in JSON."""
    made = {
        "specversion": "1.0",
        "id": str(event.id),
        "source": events.source(node),
        "type": events.TYPE + event.kind,
        "time": datetime.fromtimestamp(event.at, UTC).isoformat(timespec="milliseconds"),
        "datacontenttype": "application/json",
        "data": event.data,
    }
    return made if event.model is None else {**made, "subject": event.model}


class Streams:
    """The route: at most `limits.streams` streams at a time, each `limits.stream_s` long at most.

    A stream begins after Last-Event-ID, or `?after=ID`, or with what happens from now on. `?after=0` gives all that is
    kept. Who asks for `application/cloudevents-batch+json` gets what there is as one JSON list, without a stream.
    """

    def __init__(self, db: Database, node: str, limits: Limits) -> None:
        self._db = db
        self._node = node
        self._limits = limits
        self._open = 0
        self._closed = False

    def close(self) -> None:
        """End all streams soon; their clients come back to the next daemon and go on where they were."""
        self._closed = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        after = _after(scope)
        if scope["method"] == "HEAD":
            await json_answer(None, headers={"content-type": STREAM_TYPE})(scope, receive, send)
        elif isinstance(after, str):
            await error(400, "usage", after, "an event's id is a whole number")(scope, receive, send)
        elif BATCH_TYPE in Headers(scope=scope).get("accept", ""):
            await (await self._batch(after))(scope, receive, send)
        elif self._open >= self._limits.streams:
            what = f"{self._open} streams are open, more are not allowed"
            refusal = error(503, "busy", what, "ask again later", headers={"retry-after": "5"})
            await refusal(scope, receive, send)
        else:
            self._open += 1
            try:
                await self._stream(after, scope, receive, send)
            finally:
                self._open -= 1

    async def _batch(self, after: int | None) -> Any:
        found = await asyncio.to_thread(events.since, self._db, after or 0, MAX_BATCH)
        answer = json_answer([cloud_event(each, self._node) for each in found])
        answer.headers["content-type"] = BATCH_TYPE
        return answer

    async def _stream(self, after: int | None, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.create_task(_until_gone(receive))
        try:
            await self._send_all(after, send, gone)
        except TimeoutError:  # it does not read: what lies in its buffer must not wait for ever
            abort = scope.get("state", {}).get("abort")
            if abort is not None:
                abort()
                await asyncio.wait({gone}, timeout=1.0)
        finally:
            gone.cancel()

    async def _send_all(self, after: int | None, send: Send, gone: asyncio.Task[None]) -> None:
        headers = {**HEADERS, "content-type": STREAM_TYPE, "x-accel-buffering": "no"}
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        last, words = await asyncio.to_thread(self._begin, after)
        ends = time.monotonic() + self._limits.stream_s
        said = time.monotonic()
        while not gone.done():
            if words:
                async with asyncio.timeout(self._limits.stall_s):
                    await send({"type": "http.response.body", "body": words.encode(), "more_body": True})
                said = time.monotonic()
            found = await asyncio.to_thread(events.since, self._db, last, BATCH)
            words = "".join(_lines(cloud_event(each, self._node)) for each in found)
            if found:
                last = found[-1].id
                continue
            if self._closed or time.monotonic() > ends:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                return
            if time.monotonic() - said > self._limits.heartbeat_s:
                words = ": still here\n\n"
            await asyncio.wait({gone}, timeout=LOOK_S)

    def _begin(self, after: int | None) -> tuple[int, str]:
        """After which id to begin, and the first words. Blocks."""
        first = f"retry: {RETRY_MS}\n\n"
        newest, oldest = events.newest(self._db), events.oldest(self._db)
        if after is None:
            return newest, first
        if after > newest:  # ids only rise: the state file was another one then
            after, forgotten = 0, True
        else:
            forgotten = 0 < after < oldest - 1
        if forgotten:
            data = {"reason": "events between the one named and the next are no longer kept"}
            lost = events.Event(0, time.time(), "forgotten", None, data)
            first += _lines(cloud_event(lost, self._node), numbered=False)
        return after, first


def _lines(event: dict[str, Any], *, numbered: bool = True) -> str:
    """One message; without a number the client's Last-Event-ID stays as it is."""
    number = f"id: {event['id']}\n" if numbered else ""
    return f"{number}data: {json.dumps(event)}\n\n"


def _after(scope: Scope) -> int | str | None:
    """Where to begin; a text says why that cannot be told."""
    given = [Headers(scope=scope).get("last-event-id"), QueryParams(scope["query_string"]).get("after")]
    found: list[int] = []
    for text in given:
        if text is None:
            continue
        if not (text.isascii() and text.isdigit() and len(text) <= 16 and int(text) <= _MAX_ID):
            return f"{text[:40]!r} is no event's id"
        found.append(int(text))
    return found[0] if found else None


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
