"""What this node has accepted: the floor under every rollback, and the ground for starting with no network.

`FOLDER/receipts.json` (0600) is written last in an accepted poll and replaced durably. It outlives the metadata folder:
a fresh copy of the metadata does not make an older store acceptable. A floor holds as long as the same keys sign the
role; where the fleet key has named new ones, a thief's numbers are forgotten with the thief's key.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from syncd.durable import replace_file
from syncd.errors import DiskFull, DocumentInvalid, Expired, Failed, NodeBusy, NotAuthentic, RolledBack
from syncd.trust.facts import ChannelFacts, parse_channel

FORMAT: Final = "syncd.receipts/1"
FILE: Final = "receipts.json"
_LOCK_WITHIN_S: Final = 60.0


def digest(data: bytes) -> str:
    """`sha256:HEX` of the bytes as served."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass(frozen=True)
class RoleReceipt:
    """A signing role as it was accepted: metadata number, digest of its bytes, expiry (unix time), who may sign it."""

    number: int
    digest: str
    expires: float
    keys: tuple[str, ...]


@dataclass(frozen=True)
class IndexRef:
    """The verified target of the role `versions`."""

    name: str
    digest: str
    length: int


@dataclass(frozen=True)
class Poll:
    """The ETag to ask for changes with, and the digest of the timestamp that came with it."""

    etag: str | None
    timestamp: str


@dataclass(frozen=True)
class Receipts:
    """Everything accepted for one model under one fleet root (`fleet`: the SHA-256 of its bytes)."""

    fleet: str
    model: str
    signed_at: float = 0.0
    roles: Mapping[str, RoleReceipt] = field(default_factory=dict)
    channels: Mapping[str, ChannelFacts] = field(default_factory=dict)
    index: IndexRef | None = None
    polls: Mapping[str, Poll] = field(default_factory=dict)

    def with_poll(self, role: str, poll: Poll) -> Receipts:
        """The same with another ETag for a signing role."""
        return replace(self, polls={**self.polls, role: poll})

    def refuse_older(
        self, offered: Mapping[str, RoleReceipt], delegated: Mapping[str, tuple[str, ...]]
    ) -> None:
        """Raise unless everything offered is at least as new as what was accepted.

        Args:
            offered: every signing role that the verified snapshot names, besides root, timestamp and snapshot.
            delegated: signing role → the keys that may sign it now.
        Raises:
            RolledBack: a lower number, or a role that is gone.
            NotAuthentic: an accepted number with other content.
        """
        for role, accepted in self.roles.items():
            if delegated.get(role) != accepted.keys:
                continue
            found = offered.get(role)
            if found is None or found.number < accepted.number:
                number = "none" if found is None else str(found.number)
                raise RolledBack(
                    f"the store offers number {number} of {role}, this node has accepted {accepted.number}",
                    why="an old copy of the store is being served, by a cache, a restored backup or an attacker",
                    do="nothing was changed: what serves goes on serving until the store offers something newer",
                    model=self.model,
                    role=role,
                )
            if found.number == accepted.number and found.digest != accepted.digest:
                raise NotAuthentic(
                    f"number {found.number} of {role} has digest {found.digest[:19]}…, "
                    f"accepted was {accepted.digest[:19]}…",
                    why="one metadata number has two contents: somebody else signs with the same keys",
                    do="nothing was changed: compare the store with its publisher; the next number is looked at afresh",
                    model=self.model,
                    role=role,
                )

    def refuse_replay(self, channel: str, offered: ChannelFacts | None, keys: tuple[str, ...]) -> None:
        """Raise unless a channel's release is at least the accepted one, and the same one if the counter is equal."""
        accepted = self.channels.get(channel)
        receipt = self.roles.get(f"channel-{channel}")
        if accepted is None or (receipt is not None and receipt.keys != keys):
            return
        if offered is None or offered.release < accepted.release:
            number = "none" if offered is None else str(offered.release)
            raise RolledBack(
                f"the store offers release {number} of the channel, this node has accepted {accepted.release}",
                why="an old release was signed again: going back takes a release of its own",
                do="nothing was changed: what serves goes on serving",
                model=self.model,
                channel=channel,
            )
        if offered.release == accepted.release and (
            (offered.version, offered.head_digest) != (accepted.version, accepted.head_digest)
        ):
            raise NotAuthentic(
                f"release {offered.release} of the channel is version {offered.version} "
                f"({offered.head_digest[:19]}…), accepted was version {accepted.version} "
                f"({accepted.head_digest[:19]}…)",
                why="one release has two contents: somebody else signs with the same keys",
                do="nothing was changed: what serves goes on serving",
                model=self.model,
                channel=channel,
            )

    def save(self, folder: Path) -> None:
        """Write the receipts durably."""
        replace_file(folder / FILE, json.dumps(self._as_json(), sort_keys=True).encode(), mode=0o600)

    def _as_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "requires": [],
            "fleet": self.fleet,
            "model": self.model,
            "signed_at": self.signed_at,
            "roles": {
                role: {
                    "number": each.number,
                    "digest": each.digest,
                    "expires": each.expires,
                    "keys": each.keys,
                }
                for role, each in self.roles.items()
            },
            "channels": {
                channel: {
                    "custom": each.custom(),
                    "digest": each.head_digest,
                    "length": each.head_length,
                    "expires": dict(each.expires),
                }
                for channel, each in self.channels.items()
            },
            "index": None
            if self.index is None
            else {"name": self.index.name, "digest": self.index.digest, "length": self.index.length},
            "polls": {
                role: {"etag": each.etag, "timestamp": each.timestamp} for role, each in self.polls.items()
            },
        }


def load_receipts(folder: Path, fleet: str, model: str) -> Receipts:
    """The receipts of `folder`, or empty ones on a first start.

    Raises:
        DocumentInvalid: the file is damaged; it is never taken for a first start, that would forget the floor.
        NotAuthentic: it belongs to another fleet root or another model.
    """
    try:
        with disk_errors(folder):
            data = (folder / FILE).read_bytes()
    except FileNotFoundError:
        return Receipts(fleet, model)
    try:
        receipts = _parse(json.loads(data))
    except (ValueError, KeyError, TypeError, AttributeError, DocumentInvalid) as error:
        raise DocumentInvalid(
            f"the receipts of accepted metadata cannot be read: {error}",
            why="the disk or somebody damaged the file; syncd replaces it as a whole",
            do="restore it from a backup; removing it makes this node accept any validly signed store, older ones too",
            path=folder / FILE,
        ) from error
    if (receipts.fleet, receipts.model) != (fleet, model):
        raise NotAuthentic(
            f"the folder holds receipts for model {receipts.model!r} under fleet root {receipts.fleet[:19]}…, "
            f"not for {model!r} under {fleet[:19]}…",
            do="use another folder, or remove this one if the fleet was set up anew",
            path=folder,
        )
    return receipts


def _parse(data: dict[str, Any]) -> Receipts:
    if data["format"] != FORMAT or data["requires"] != []:
        raise ValueError(f"format {data['format']!r}, requires {data['requires']!r}")
    model = data["model"]
    roles = {
        role: RoleReceipt(int(each["number"]), each["digest"], float(each["expires"]), tuple(each["keys"]))
        for role, each in data["roles"].items()
    }
    channels = {
        channel: parse_channel(
            model,
            channel,
            f"versions/{each['custom']['version']}/head.json",
            each["digest"],
            each["length"],
            each["custom"],
            each["expires"],
        )
        for channel, each in data["channels"].items()
    }
    index = data["index"]
    return Receipts(
        fleet=data["fleet"],
        model=model,
        signed_at=float(data["signed_at"]),
        roles=roles,
        channels=channels,
        index=None if index is None else IndexRef(index["name"], index["digest"], index["length"]),
        polls={role: Poll(each["etag"], each["timestamp"]) for role, each in data["polls"].items()},
    )


def refuse_expired(model: str, roles: Mapping[str, RoleReceipt], now: float) -> None:
    """Raise Expired for the first role whose time has passed at `now` (unix time)."""
    for role, each in roles.items():
        if each.expires <= now:
            raise Expired(
                f"{role} expired on {_day(each.expires)}, it is {_day(now)} by this node's reckoning",
                why="nobody has renewed it, an old copy of the store is being served, or a clock is wrong",
                do="what serves goes on serving; renew with a running publisher, or check the clock; "
                "`syncd pull --accept-expired` takes it as it is",
                model=model,
                role=role,
            )


def _day(when: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(when))


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's own lock: one refresh at a time, over all processes."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        deadline = time.monotonic() + _LOCK_WITHIN_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise NodeBusy("another process keeps refreshing this metadata", path=folder) from error
                time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """What the operating system says about `folder`, as errors of ours; a missing file passes as it is."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                "the disk has no room for a few kilobytes of metadata",
                do="make room; what serves goes on serving",
                path=folder,
            ) from error
        raise Failed(
            f"the folder of accepted metadata cannot be used: {error.strerror}",
            do="give it to the user that runs this; nothing was accepted",
            path=error.filename or folder,
        ) from error
