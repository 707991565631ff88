"""Signed metadata as bytes: the fleet's root, a model's root and delegations, and what its online key signs.

Who signs what (DESIGN section 7): the fleet key signs every root and the top-level `targets` (10 years); a model's
online key signs snapshot, timestamp, `versions` and every channel that has no key of its own (one year).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from syncd.trust import names

if TYPE_CHECKING:
    from securesystemslib.signer import Key, Signer

FLEET_LIFE_S: Final = 10 * 365 * 86400.0
ONLINE_LIFE_S: Final = 365 * 86400.0
MODEL_FIELD: Final = "x-syncd-model"
NEXT_FIELD: Final = "x-syncd-next"
SIGNED_AT_FIELD: Final = "x-syncd-signed-at"
MAX_TIMESTAMP_BYTES: Final = 16384
_MAX_HINTS_BYTES: Final = 8192


@dataclass(frozen=True)
class Target:
    """What a role points at: a name below the model's folder, `sha256:HEX`, bytes, and the role's custom object."""

    name: str
    digest: str
    length: int
    custom: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SignedRole:
    """Numbered metadata as it is served."""

    number: int
    data: bytes


def sign_fleet_root(fleet: Signer, now: float | None = None) -> bytes:
    """`1.root.json` of the fleet and so of every model: the fleet key alone, for every role."""
    from tuf.api.metadata import Root

    root = Root(version=1, expires=_expiry(now, FLEET_LIFE_S), consistent_snapshot=True)
    for role in ("root", "targets", "snapshot", "timestamp"):
        root.add_key(fleet.public_key, role)
    return _signed(root, fleet)


def sign_model_root(
    fleet: Signer, online: Key, model: str, number: int = 2, now: float | None = None
) -> bytes:
    """A model's own root: root and targets stay with the fleet key, snapshot and timestamp go to its online key."""
    from tuf.api.metadata import Root

    root = Root(
        version=number,
        expires=_expiry(now, FLEET_LIFE_S),
        consistent_snapshot=True,
        unrecognized_fields={MODEL_FIELD: model},
    )
    for role in ("root", "targets"):
        root.add_key(fleet.public_key, role)
    for role in ("snapshot", "timestamp"):
        root.add_key(online, role)
    return _signed(root, fleet)


def sign_targets(
    fleet: Signer, model: str, number: int, role_keys: Mapping[str, Key], now: float | None = None
) -> bytes:
    """The top-level `targets`: no target of its own, one delegation for `versions` and for each channel.

    Args:
        role_keys: signing role → the key that may sign it.
    """
    from tuf.api.metadata import DelegatedRole, Delegations, Targets

    keys: dict[str, Key] = {}
    roles: dict[str, DelegatedRole] = {}
    for role, key in sorted(role_keys.items()):
        keys[key.keyid] = key
        path = "index/*.json" if role == names.VERSIONS_ROLE else "versions/*/head.json"
        roles[role] = DelegatedRole(role, [key.keyid], 1, terminating=False, paths=[path])
    targets = Targets(
        version=number,
        expires=_expiry(now, FLEET_LIFE_S),
        delegations=Delegations(keys, roles),
        unrecognized_fields={MODEL_FIELD: model},
    )
    return _signed(targets, fleet)


class ModelSigner:
    """Signs for one model with its online key, and with a channel's own key where one was given.

    Args:
        channels: channel → its own key, for the channels that have one and whose key is here.
    """

    def __init__(self, model: str, online: Signer, channels: Mapping[str, Signer] | None = None) -> None:
        self.model = model
        self.online = online
        self._channels = dict(channels or {})

    def key_of(self, role: str) -> Signer:
        """The signer that this machine has for a signing role."""
        channel = names.role_channel(role)
        return self._channels.get(channel, self.online) if channel else self.online

    def sign_role(self, role: str, number: int, target: Target | None, now: float | None = None) -> bytes:
        """`versions` or `channel-NAME`, with its single target or, before the first release, none."""
        from tuf.api.metadata import TargetFile, Targets

        files: dict[str, TargetFile] = {}
        if target is not None:
            extra = {"custom": dict(target.custom)} if target.custom else {}
            hashes = {"sha256": target.digest.removeprefix("sha256:")}
            files[target.name] = TargetFile(target.length, hashes, target.name, extra)
        signed = Targets(
            version=number,
            expires=_expiry(now, ONLINE_LIFE_S),
            targets=files,
            unrecognized_fields={MODEL_FIELD: self.model},
        )
        return _signed(signed, self.key_of(role))

    def sign_snapshot(self, number: int, roles: Mapping[str, SignedRole], now: float | None = None) -> bytes:
        """The snapshot: number, length and digest of `targets`, `versions` and every channel's role."""
        from tuf.api.metadata import MetaFile, Snapshot

        meta = {
            f"{role}.json": MetaFile.from_data(each.number, each.data, ["sha256"])
            for role, each in sorted(roles.items())
        }
        fields = {MODEL_FIELD: self.model}
        snapshot = Snapshot(
            number, expires=_expiry(now, ONLINE_LIFE_S), meta=meta, unrecognized_fields=fields
        )
        return _signed(snapshot, self.online)

    def sign_timestamp(
        self,
        number: int,
        snapshot: SignedRole,
        hints: Mapping[str, list[str]],
        now: float | None = None,
    ) -> bytes:
        """The timestamp, with the names that a reader will want next and the time of signing (unix seconds).

        Args:
            hints: signing role → names to fetch for it; left out where they would make the timestamp too large.
        """
        from tuf.api.metadata import MetaFile, Timestamp

        now = time.time() if now is None else now
        meta = MetaFile.from_data(snapshot.number, snapshot.data, ["sha256"])
        fields: dict[str, Any] = {MODEL_FIELD: self.model, SIGNED_AT_FIELD: int(now), NEXT_FIELD: {}}
        room = _MAX_HINTS_BYTES
        for role, wanted in sorted(hints.items(), key=lambda item: (item[0] != "snapshot", item[0])):
            room -= len(role) + sum(len(name) + 4 for name in wanted) + 8
            if room >= 0:
                fields[NEXT_FIELD][role] = list(wanted)
        timestamp = Timestamp(number, None, _expiry(now, ONLINE_LIFE_S), meta, fields)
        return _signed(timestamp, self.online)


def _expiry(now: float | None, life_s: float) -> datetime:
    return datetime.fromtimestamp(time.time() if now is None else now, UTC) + timedelta(seconds=life_s)


def _signed(signed: Any, signer: Signer) -> bytes:
    from tuf.api.metadata import Metadata

    metadata: Metadata[Any] = Metadata(signed)
    metadata.sign(signer)
    return metadata.to_bytes()
