"""What every store offers: the protocol, its values, and the names that objects may have.

A store maps keys to whole objects. The rules, which `tests/contract/store_contract.py` holds every store to:
- A key is `name/name/…` of letters, digits, `.`, `_`, `-`; no name begins with a dot or a dash. Anything else is
  KeyInvalid before anything is asked.
- A put is whole or not at all: no reader, now or after a power cut, sees half an object.
- `Create()` wins for exactly one of any number of racers; `IfMatch(etag)` for exactly one that saw that ETag.
- Nothing is read past the caller's limit, and every wait has a time limit.
- What a store cannot do it declares in `capabilities` and refuses with StoreReadOnly or StoreCannot.
- A store belongs to one event loop; `BlockingStore` lends it to other threads.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit, urlunsplit

from syncd.errors import KeyInvalid

MAX_KEY_CHARACTERS = 512
MAX_OBJECT_BYTES = 32 << 20
"""The most a put takes: a pack (16 MiB of segments) with its footer, or any document, with room to spare."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


@dataclass(frozen=True)
class ObjectInfo:
    """What a store knows about an object without reading it; `modified` is unix time."""

    key: str
    size: int
    etag: str | None
    modified: float | None


@dataclass(frozen=True)
class Blob:
    """An object's bytes, the ETag to ask for changes with (None: must not be remembered) and the server's clock."""

    data: bytes
    etag: str | None
    server_date: float | None = None


@dataclass(frozen=True)
class Capabilities:
    """What a store can do at all; what its credentials may do shows when it is tried."""

    write: bool
    create_only: bool
    compare_and_set: bool
    list: bool
    delete: bool
    ranges: bool


@dataclass(frozen=True)
class Create:
    """Put only if there is no object of that name: ObjectExists for everyone but the first."""


@dataclass(frozen=True)
class Replace:
    """Put whatever is there."""


@dataclass(frozen=True)
class IfMatch:
    """Put only over the content that had this ETag: ObjectChanged otherwise, also when there is nothing."""

    etag: str


Mode = Create | Replace | IfMatch


class Store(Protocol):
    """One place where objects lie. Every method raises StoreDenied, StoreUnreachable or StoreBroken besides its own.

    `url` names the store without secrets; `wire_bytes` counts body bytes received so far, `requests` what was asked.
    """

    url: str
    capabilities: Capabilities
    wire_bytes: int
    requests: int

    async def get(self, key: str, *, limit: int) -> Blob:
        """The whole object, of at most `limit` bytes. Raises ObjectMissing, ObjectTooLarge."""
        ...

    async def get_if_changed(self, key: str, etag: str | None, *, limit: int) -> Blob | None:
        """The object, or None if it still has `etag` (then no body travels). Raises as `get`."""
        ...

    async def get_range(self, key: str, start: int, length: int) -> bytes | memoryview:
        """Exactly `length` bytes from `start`, in no copy of their own, or StoreBroken. Raises ObjectMissing."""
        ...

    async def head(self, key: str) -> ObjectInfo:
        """Size, ETag and time of an object. Raises ObjectMissing."""
        ...

    async def put(self, key: str, data: bytes, *, mode: Mode) -> str | None:
        """Store `data` and return its ETag; a lost answer is read back before it is judged.

        After a lost answer an object with exactly `data` in it counts as ours: what racers put must differ.
        StoreUnreachable leaves open whether it was stored. Raises ObjectExists, ObjectChanged, StoreReadOnly,
        StoreFull, ObjectTooLarge above MAX_OBJECT_BYTES.
        """
        ...

    def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Every object below `prefix/` ("" for all), at any depth, in no order; ETags may be None; or StoreCannot."""
        ...

    async def delete(self, key: str) -> None:
        """Remove an object; one that is missing is fine. Raises StoreReadOnly."""
        ...

    async def aclose(self) -> None:
        """Close connections; the store is not used afterwards."""
        ...


def validate_key(key: str) -> None:
    """Raise KeyInvalid unless `key` is a plain relative name: no dots first, no empty part, nothing to escape."""
    if len(key) > MAX_KEY_CHARACTERS or not all(_NAME.fullmatch(name) for name in key.split("/")):
        raise KeyInvalid(
            f"{key[:80]!r} is not a name an object can have",
            why="a name is made of letters, digits, '.', '_', '-' and '/', and no part begins with a dot or a dash",
        )


def validate_prefix(prefix: str) -> str:
    """`prefix` without a slash at its end, "" for everything; raises KeyInvalid as `validate_key`."""
    prefix = prefix.removesuffix("/")
    if prefix:
        validate_key(prefix)
    return prefix


def public_url(url: str) -> str:
    """`url` without user, password, query and fragment: what may be shown."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
