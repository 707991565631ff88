"""How answers are made: JSON, and errors as {code, what, where, why, do} with the status that fits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from starlette.responses import Response

from syncd.errors import (
    Failed,
    Refused,
    StoreError,
    SyncdError,
    UnknownChannel,
    UnknownModel,
    UnknownVersion,
    UsageError,
)

HEADERS: Final = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
_STATUS: Final[tuple[tuple[type[SyncdError], int], ...]] = (
    (UnknownModel, 404),
    (UnknownVersion, 404),
    (UnknownChannel, 404),
    (UsageError, 400),
    (Failed, 409),
    (Refused, 409),
    (StoreError, 503),
)


def json_answer(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer."""
    body = json.dumps(content, default=str).encode() + b"\n"
    return Response(body, status, media_type="application/json", headers={**HEADERS, **(headers or {})})


def error(
    status: int, code: str, what: str, do: str, *, headers: Mapping[str, str] | None = None
) -> Response:
    """An error of the endpoint's own."""
    content = {"error": {"code": code, "what": what, "where": {}, "why": "", "do": do}}
    return json_answer(content, status, headers)


def told(problem: SyncdError) -> Response:
    """One of syncd's errors, as every command tells it."""
    status = next((number for kind, number in _STATUS if isinstance(problem, kind)), 500)
    return json_answer({"error": problem.as_dict()}, status)
