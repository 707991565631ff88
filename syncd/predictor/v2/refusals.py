"""What a client is told when it gets no answer: the protocol's status and one sentence, always as JSON."""

from __future__ import annotations

import json
from typing import Final

RETRY_AFTER_S: Final = 1


class Refusal(Exception):
    """A request that is not answered. `code` is one word for metrics; `retry`: the same request may succeed later."""

    def __init__(self, status: int, code: str, what: str, *, retry: bool = False) -> None:
        super().__init__(what)
        self.status = status
        self.code = code
        self.what = what
        self.retry = retry

    def body(self) -> bytes:
        """The protocol's error object; `code` is ours."""
        return json.dumps({"error": self.what, "code": self.code}).encode()

    def headers(self) -> dict[str, str]:
        """`Retry-After` where trying again helps."""
        return {"retry-after": str(RETRY_AFTER_S)} if self.retry else {}


def bad_request(what: str) -> Refusal:
    """400: the client must change the request."""
    return Refusal(400, "bad-request", what)


def too_large(what: str) -> Refusal:
    """413: the request is longer than the server takes."""
    return Refusal(413, "too-large", what)


def busy(what: str) -> Refusal:
    """429: the queue is full."""
    return Refusal(429, "busy", what, retry=True)


def late(what: str) -> Refusal:
    """503: no answer within the time that one may take."""
    return Refusal(503, "late", what, retry=True)


def not_ready(what: str) -> Refusal:
    """503: nothing serves yet."""
    return Refusal(503, "not-ready", what, retry=True)


def unknown(what: str) -> Refusal:
    """404: no such model, version or route."""
    return Refusal(404, "unknown", what)
