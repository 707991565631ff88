"""The object of `/v1/status`: every key of it, there from the first second, null or empty until something is known."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from syncd.state.db import Database

PUBLISHED: Final[dict[str, Any]] = {
    "model": None,
    "state": None,
    "last_version": None,
    "last_error": None,
    "pending": 0,
    "seen": 0,
    "ignored": [],
}
MODEL: Final[dict[str, Any]] = {
    "model": None,
    "channel": None,
    "state": None,
    "serving": None,
    "available": None,
    "previous": None,
    "probation_until": None,
    "quarantined": [],
    "held": False,
    "pinned": None,
    "approve": "automatic",
    "waits_for": None,
    "hooks": [],
    "last_poll": None,
    "last_change": None,
    "wire_bytes": 0,
    "followers": [],
    "trust": {},
}


class Source(Protocol):
    """Who knows what to say and whom to tell; what is not async may block for a moment and is called in a thread."""

    def document(self) -> dict[str, Any]:
        """The whole object of `/v1/status`."""
        ...

    @property
    def db(self) -> Database:
        """The state file: the events."""
        ...

    @property
    def node_name(self) -> str:
        """This node's name."""
        ...

    async def obey(self, model: str, command: str, version: int | None, by: str) -> dict[str, Any]:
        """Carry out a command on a followed model; UnknownModel, UsageError and what the command says."""
        ...

    def not_ready(self) -> list[str]:
        """What has not had its first success yet, in words; empty: ready."""
        ...


def whole(defaults: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """What a role told, with the keys that it left out."""
    return {**defaults, **told}


def instant(unix: float | None) -> str | None:
    """Unix seconds as ISO 8601 in UTC."""
    return None if unix is None else datetime.fromtimestamp(unix, UTC).isoformat(timespec="seconds")
