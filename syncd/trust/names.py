"""The name of every object in a store, and of every signing role: DESIGN section 6, in one place."""

from __future__ import annotations

import re
from typing import Final, Literal

DocumentKind = Literal["layouts", "tables", "deltas", "packs"]
DOCUMENT_KINDS: Final = ("layouts", "tables", "deltas", "packs")

FLEET_ROOT: Final = "fleet/1.root.json"
TIMESTAMP: Final = "metadata/timestamp.json"
VERSIONS_ROLE: Final = "versions"
CHANNEL_PREFIX: Final = "channel-"
DEFAULT_CHANNELS: Final = ("latest", "stable")

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_HEAD = re.compile(r"versions/([1-9][0-9]{0,15})/head\.json")
_INDEX = re.compile(r"index/([1-9][0-9]{0,15})\.json")
_NUMBERED = re.compile(r"metadata/([1-9][0-9]{0,15})\.([a-z0-9][a-z0-9._-]{0,80})\.json")


def is_name(text: str) -> bool:
    """Whether `text` can name a model or a channel."""
    return _NAME.fullmatch(text) is not None


def model_folder(model: str) -> str:
    """`models/MODEL`; ValueError for a name that could leave it."""
    if not is_name(model):
        raise ValueError(f"{model!r} is not a model's name")
    return f"models/{model}"


def model_key(model: str, name: str) -> str:
    """The store's key of `name`, which is relative to the model's folder."""
    return f"{model_folder(model)}/{name}"


def metadata(number: int, role: str) -> str:
    """`metadata/N.ROLE.json`, relative to the model's folder."""
    return f"metadata/{number}.{role}.json"


def parse_metadata(name: str) -> tuple[int, str] | None:
    """Number and role of `metadata/N.ROLE.json`; None for any other name."""
    found = _NUMBERED.fullmatch(name)
    return (int(found[1]), found[2]) if found else None


def channel_role(channel: str) -> str:
    """The signing role of a channel; ValueError for what cannot be one."""
    if not is_name(channel):
        raise ValueError(f"{channel!r} is not a channel's name")
    return f"{CHANNEL_PREFIX}{channel}"


def role_channel(role: str) -> str | None:
    """The channel of a signing role; None for every other role."""
    channel = role.removeprefix(CHANNEL_PREFIX)
    return channel if channel != role and is_name(channel) else None


def claim(version: int) -> str:
    """Where a version's number is claimed, create-only."""
    return f"versions/{version}/claim"


def head(version: int) -> str:
    """Where a version's head lies: the target of a channel's role."""
    return f"versions/{version}/head.json"


def head_version(name: str) -> int | None:
    """The version of a head's name; None for any other name."""
    found = _HEAD.fullmatch(name)
    return int(found[1]) if found else None


def index(number: int) -> str:
    """Where an index lies: the target of the role `versions`."""
    return f"index/{number}.json"


def index_number(name: str) -> int | None:
    """The number of an index's name; None for any other name."""
    found = _INDEX.fullmatch(name)
    return int(found[1]) if found else None


def is_digest(text: object) -> bool:
    """Whether `text` is `sha256:` and 64 lower-case hex digits."""
    return isinstance(text, str) and _DIGEST.fullmatch(text) is not None


def document(kind: DocumentKind, digest: str) -> str:
    """`KIND/HEX` for a document or pack named by its digest; ValueError for what is neither."""
    if kind not in DOCUMENT_KINDS or not is_digest(digest):
        raise ValueError(f"{kind}/{digest} names no document")
    return f"{kind}/{digest.removeprefix('sha256:')}"


def pending(channel: str, release: int) -> str:
    """Where a promotion waits that only its channel's key has signed."""
    return f"pending/{channel}-{release}.json"


def is_hint(name: object) -> bool:
    """Whether a name in `x-syncd-next` may be prefetched: numbered metadata, a head or an index, nothing else."""
    return isinstance(name, str) and bool(
        parse_metadata(name) or head_version(name) is not None or index_number(name) is not None
    )
