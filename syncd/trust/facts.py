"""What a channel's signed role says, as a value: which version it releases, and what goes with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from syncd.errors import DocumentInvalid, NeedsNewerSyncd
from syncd.trust import names

MAX_HEAD_BYTES: Final = 64 * 1024
MAX_INDEX_BYTES: Final = 32 * 1024 * 1024
_MAX_NUMBER: Final = 10**15
_MAX_YANKED: Final = 4096
_MAX_DELTAS: Final = 64


@dataclass(frozen=True)
class DeltaRef:
    """A delta document of a channel: from which version to which, its digest (`sha256:HEX`) and bytes."""

    from_version: int
    to_version: int
    digest: str
    length: int

    def as_json(self) -> dict[str, Any]:
        """As it stands in the role's custom object."""
        return {
            "from": self.from_version,
            "to": self.to_version,
            "digest": self.digest,
            "length": self.length,
        }


@dataclass(frozen=True)
class ChannelFacts:
    """What a channel releases: verified, and what an edge acts upon.

    `expires` has the unix time at which each signing role on the way expires; `released_at` is text in ISO 8601.
    """

    model: str
    channel: str
    version: int
    release: int
    head_digest: str
    head_length: int
    released_at: str
    yanked: tuple[int, ...] = ()
    deltas: tuple[DeltaRef, ...] = ()
    expires: Mapping[str, float] = field(default_factory=dict)
    rollout: Mapping[str, Any] = field(default_factory=dict)

    def custom(self) -> dict[str, Any]:
        """The custom object of the channel's target."""
        return {
            "format": "syncd.channel/1",
            "requires": [],
            "version": self.version,
            "release": self.release,
            "time": self.released_at,
            "rollout": dict(self.rollout),
            "yanked": sorted(self.yanked),
            "deltas": [delta.as_json() for delta in self.deltas],
        }

    def says_the_same(self, other: ChannelFacts | None) -> bool:
        """Whether both release the same with the same company; expiry aside."""
        return other is not None and (
            (self.custom(), self.head_digest, self.head_length)
            == (other.custom(), other.head_digest, other.head_length)
        )


def parse_channel(
    model: str, channel: str, name: str, digest: str, length: int, custom: Any, expires: Mapping[str, float]
) -> ChannelFacts:
    """Facts from a channel's verified target; a later format is refused by name, anything crooked as invalid.

    Raises:
        DocumentInvalid, NeedsNewerSyncd: nothing of it may be used.
    """
    where = {"model": model, "channel": channel}
    if not isinstance(custom, dict):
        raise DocumentInvalid("the channel's target has no custom object", **where)
    requires = custom.get("requires", [])
    if custom.get("format", "syncd.channel/1") != "syncd.channel/1" or requires != []:
        raise NeedsNewerSyncd(
            f"the channel needs a later syncd: {custom.get('format')!r}, requires {requires!r}",
            do="update syncd; what serves goes on serving",
            **where,
        )
    version = names.head_version(name)
    try:
        facts = ChannelFacts(
            model=model,
            channel=channel,
            version=_number(custom["version"]),
            release=_number(custom["release"]),
            head_digest=digest,
            head_length=_number(length),
            released_at=_text(custom["time"]),
            yanked=tuple(_number(each) for each in _items(custom.get("yanked", []), _MAX_YANKED)),
            deltas=tuple(_delta(each) for each in _items(custom.get("deltas", []), _MAX_DELTAS)),
            expires=dict(expires),
            rollout=_object(custom.get("rollout", {})),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise DocumentInvalid(f"the channel's custom object breaks its format: {error}", **where) from error
    if facts.version != version or facts.head_length > MAX_HEAD_BYTES or not names.is_digest(digest):
        raise DocumentInvalid(
            f"the channel's target {name!r} ({length} bytes) is not the head of version {facts.version}",
            **where,
        )
    return facts


def _number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MAX_NUMBER:
        raise ValueError(f"{value!r} is not a number from 1")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 64:
        raise ValueError(f"{value!r:.80} is not a short text")
    return value


def _items(value: Any, most: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise ValueError(f"not a list of at most {most}")
    return value


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or len(value) > 16:
        raise ValueError("not a small object")
    return value


def _delta(value: Any) -> DeltaRef:
    entry = _object(value)
    if not names.is_digest(entry["digest"]):
        raise ValueError(f"{entry['digest']!r:.80} is not a digest")
    return DeltaRef(_number(entry["from"]), _number(entry["to"]), entry["digest"], _number(entry["length"]))
