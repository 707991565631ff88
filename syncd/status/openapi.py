"""What the endpoint offers, as an OpenAPI 3.1 document: the answer of `/openapi.json`."""

from __future__ import annotations

from typing import Any, Final

import syncd
from syncd.state.wishes import COMMANDS, WITH_VERSION
from syncd.status.stream import BATCH_TYPE

_TEXT: Final = {"text/plain": {"schema": {"type": "string"}}}
_VERSION: Final = {"type": "integer", "minimum": 1, "maximum": 2**53 - 1}
_MAYBE: Final = {"type": ["integer", "null"]}
_WORDS: Final = {
    "poll": "Ask the store now.",
    "rollback": "Go back to the version before; the one that is left is not taken again unless approved.",
    "pin": "Serve this version and no other, whatever the channel releases.",
    "unpin": "Follow the channel again.",
    "approve": "Let a version be fetched; lifts its quarantine.",
    "hold": "No updates until resume; going back from a failing version goes on.",
    "resume": "End hold.",
}
_ERROR: Final = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "what", "where", "why", "do"],
            "properties": {
                "code": {"type": "string"},
                "what": {"type": "string"},
                "where": {"type": "object"},
                "why": {"type": "string"},
                "do": {"type": "string"},
            },
        }
    },
}
_STATUS: Final = {
    "type": "object",
    "required": ["node", "version", "started_at", "store", "published", "models"],
    "properties": {
        "node": {"type": "string"},
        "version": {"type": "string"},
        "started_at": {"type": "string"},
        "store": {"type": "object", "required": ["url", "reachable", "last_contact", "clock_skew_s"]},
        "published": {"type": "array", "items": {"type": "object", "required": ["model", "state"]}},
        "models": {"type": "array", "items": {"type": "object", "required": ["model", "channel", "state"]}},
    },
}
_EVENT: Final = {
    "type": "object",
    "required": ["specversion", "id", "source", "type", "time", "data"],
    "properties": {"specversion": {"const": "1.0"}, "id": {"type": "string"}, "type": {"type": "string"}},
}
_RESULT: Final = {
    "type": "object",
    "required": ["model", "version", "previous", "held", "pinned"],
    "properties": {
        "model": {"type": "string"},
        "version": _MAYBE,
        "previous": _MAYBE,
        "held": {"type": "boolean"},
        "pinned": _MAYBE,
    },
}


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}


def _answers(good: dict[str, Any], **more: str) -> dict[str, Any]:
    """The answer with status 200, and the errors that every route may give."""
    errors = {
        "401": "the token is missing or wrong",
        "403": "this user may not",
        "421": "another machine's name",
    }
    errors |= {"503": "no answer in time", **{name.removeprefix("on_"): text for name, text in more.items()}}
    return {
        "200": good,
        **{number: {"description": text, "content": _json("Error")} for number, text in errors.items()},
    }


def _get(summary: str, content: dict[str, Any], **more: Any) -> dict[str, Any]:
    answers = _answers({"description": summary, "content": content}, **more.pop("errors", {}))
    return {"get": {"summary": summary, "responses": answers, **more}}


def _command(name: str) -> dict[str, Any]:
    properties = {"version": _VERSION} if name in WITH_VERSION else {}
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    answers = _answers(
        {"description": "done, and kept over restarts", "content": _json("Result")},
        on_400="not what this command takes",
        on_404="this node follows no such model, or there is no such version",
        on_408="the body did not arrive in time",
        on_409="not possible now",
        on_413="the body is too large",
    )
    return {
        "post": {
            "summary": _WORDS[name],
            "operationId": name,
            "security": [{"token": []}],
            "description": "Over TCP with the token; on the Unix socket root and the service user, without one.",
            "parameters": [
                {
                    "name": "model",
                    "in": "path",
                    "required": True,
                    "schema": {"type": "string", "minLength": 1},
                }
            ],
            "requestBody": {
                "required": name in WITH_VERSION,
                "content": {"application/json": {"schema": schema}},
            },
            "responses": answers,
        }
    }


def document() -> dict[str, Any]:
    """The whole document."""
    ready = _get("whether every role has had its first success", _TEXT)
    ready["get"]["responses"]["503"] = {
        "description": "not yet, and why",
        "content": {**_TEXT, **_json("Error")},
    }
    event_id = {"type": "integer", "minimum": 0, "maximum": 2**53 - 1}
    begin = [
        {
            "name": "Last-Event-ID",
            "in": "header",
            "schema": event_id,
            "description": "begin after this event",
        },
        {"name": "after", "in": "query", "schema": event_id, "description": "the same; 0: all that is kept"},
    ]
    stream = {"text/event-stream": {"schema": {"type": "string"}}}
    batch = {BATCH_TYPE: {"schema": {"type": "array", "items": {"$ref": "#/components/schemas/Event"}}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "syncd status endpoint", "version": syncd.__version__},
        "paths": {
            "/livez": _get("whether the process answers", _TEXT),
            "/readyz": ready,
            "/v1/status": _get("everything that the daemon knows of itself", _json("Status")),
            "/v1/events": _get(
                "what happens, as it happens; as a batch, what is kept",
                {**stream, **batch},
                parameters=begin,
                errors={"on_400": "no event's id"},
            ),
            "/metrics": _get("numbers for Prometheus", _TEXT),
            "/openapi.json": _get("this document", {"application/json": {"schema": {"type": "object"}}}),
            **{f"/v1/models/{{model}}/{name}": _command(name) for name in COMMANDS},
        },
        "components": {
            "schemas": {"Error": _ERROR, "Status": _STATUS, "Event": _EVENT, "Result": _RESULT},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }
