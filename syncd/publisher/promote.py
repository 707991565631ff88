"""What a person releases: a version on a channel, up or down, or a version withdrawn from all of them.

With the online key here it is committed at once. With a channel's own key alone the signed role is left in the store,
at `pending/NAME-RELEASE.json`, and a running publisher verifies and commits it (pending.py).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

from syncd.errors import KeyUnusable, LostRace, UsageError
from syncd.publisher.commit import ModelRepository, open_model
from syncd.publisher.pending import leave_pending
from syncd.store.base import Store
from syncd.trust.facts import ChannelFacts
from syncd.trust.keys import channel_key_path, model_key_path
from syncd.trust.names import channel_role

MAX_YANKED: Final = 1000
MAX_REASON_BYTES: Final = 1024
_MAX_RACES: Final = 20
_RACE_PAUSE_S: Final = 0.1
T = TypeVar("T")


@dataclass(frozen=True)
class Promotion:
    """What `promote` did. committed: False where a running publisher has to commit it; `pending` is its name then."""

    model: str
    version: int
    channel: str
    release: int
    committed: bool
    previous: int | None = None
    pending: str | None = None


@dataclass(frozen=True)
class Yanked:
    """What `yank` did. channels: that say so now; pending: as soon as a publisher commits; unsigned: no key here.

    named_by: channels that still point at the version: nobody can install from them until another is promoted.
    """

    model: str
    version: int
    reason: str
    channels: tuple[str, ...]
    pending: tuple[str, ...]
    unsigned: tuple[str, ...]
    named_by: tuple[str, ...]


@dataclass(frozen=True)
class Desk:
    """Where and with which keys a person releases. folder: receipts and metadata, as of a publisher."""

    store: Store
    model: str
    trust_root: bytes
    keys: Path
    folder: Path

    @property
    def has_online_key(self) -> bool:
        """Whether the model's online key is on this machine."""
        return model_key_path(self.keys, self.model).exists()

    def has_own_key(self, channel: str) -> bool:
        """Whether the channel's own key is on this machine."""
        return channel_key_path(self.keys, self.model, channel).exists()

    async def open(self) -> ModelRepository:
        """The model, to sign where the online key is here, else to read. Raises as `open_model`."""
        keys = self.keys if self.has_online_key else None
        return await open_model(self.store, self.model, self.trust_root, keys, self.folder)


async def promote(desk: Desk, version: int, channel: str, *, dry_run: bool = False) -> Promotion:
    """Release a kept version on a channel, up or down. Uploads no weights.

    Raises:
        UnknownModel, UnknownChannel, UnknownVersion; KeyUnusable: the key that signs there is not here.
        NotAuthentic, StoreErrors. LostRace: other publishers committed first, again and again.
    """
    repository = await desk.open()

    async def attempt() -> Promotion:
        facts, before = repository.promotion(version, channel), repository.channels.get(channel)
        previous = None if before is None else before.version
        done = Promotion(desk.model, version, channel, facts.release, desk.has_online_key, previous)
        if desk.has_online_key:
            if not dry_run:
                await repository.promote(version, channel)
            return done
        _refuse_without_key(desk, channel)
        if dry_run:
            return done
        left, name = await leave_pending(repository, facts, desk.keys)
        return replace(done, release=left.release, pending=name)

    return await _racing(repository, attempt)


async def yank(desk: Desk, version: int, reason: str, *, dry_run: bool = False) -> Yanked:
    """Withdraw a version from every channel: nobody installs it any more, nodes that serve it go back.

    Raises:
        UsageError: no reason, or one too long. UnknownModel, UnknownVersion, KeyUnusable: nothing was changed.
    """
    if not reason.strip() or len(reason.encode()) > MAX_REASON_BYTES or not reason.isprintable():
        raise UsageError(
            f"{reason!r:.60} is no reason", do=f"one line of at most {MAX_REASON_BYTES} bytes for people"
        )
    repository = await desk.open()
    if not desk.has_online_key and not any(map(desk.has_own_key, repository.channels)):
        _refuse_without_key(desk, None)

    async def attempt() -> Yanked:
        plan = _plan_yank(desk, repository, version, reason)
        if not dry_run:
            await _carry_out(desk, repository, plan)
        return plan.result

    return await _racing(repository, attempt)


@dataclass(frozen=True)
class _YankPlan:
    """Channels to commit now, channels to leave signed, and what will be so."""

    now: tuple[ChannelFacts, ...]
    later: tuple[ChannelFacts, ...]
    result: Yanked


def _plan_yank(desk: Desk, repository: ModelRepository, version: int, reason: str) -> _YankPlan:
    repository.entry(version)
    moved = [each for name in repository.channels if (each := yanking(repository, version, name)) is not None]
    now = tuple(each for each in moved if repository.can_sign(channel_role(each.channel)))
    later = tuple(each for each in moved if each not in now and desk.has_own_key(each.channel))
    released = {name: facts for name, facts in repository.channels.items() if facts is not None}
    already = [name for name, facts in released.items() if version in facts.yanked]
    result = Yanked(
        desk.model,
        version,
        reason,
        channels=tuple(sorted((*already, *(each.channel for each in now)))),
        pending=tuple(sorted(each.channel for each in later)),
        unsigned=tuple(sorted(each.channel for each in moved if each not in now and each not in later)),
        named_by=tuple(sorted(name for name, facts in released.items() if facts.version == version)),
    )
    return _YankPlan(now, later, result)


async def _carry_out(desk: Desk, repository: ModelRepository, plan: _YankPlan) -> None:
    version, reason = plan.result.version, plan.result.reason
    if desk.has_online_key and (plan.now or repository.entry(version).yanked != reason):
        versions = tuple(
            replace(each, yanked=reason) if each.version == version else each
            for each in repository.index.versions
        )
        await repository.commit_index(replace(repository.index, versions=versions), plan.now)
    for each in plan.later:
        await leave_pending(repository, each, desk.keys)


def yanking(repository: ModelRepository, version: int, channel: str) -> ChannelFacts | None:
    """What the channel would say with the version yanked; None where it says so already, or has no release yet."""
    before = repository.channels.get(channel)
    if before is None or version in before.yanked:
        return None
    yanked = tuple(sorted({*before.yanked, version})[-MAX_YANKED:])
    return replace(before, yanked=yanked, release=before.release + 1)


async def _racing(repository: ModelRepository, attempt: Callable[[], Awaitable[T]]) -> T:
    """Try until no other publisher was faster."""
    for number in range(1, _MAX_RACES + 1):
        try:
            return await attempt()
        except LostRace:
            if number == _MAX_RACES:
                raise
            await asyncio.sleep(random.uniform(0, _RACE_PAUSE_S * number))
            await repository.load()
    raise AssertionError("unreachable")


def _refuse_without_key(desk: Desk, channel: str | None) -> None:
    if channel is not None and desk.has_own_key(channel):
        return
    raise KeyUnusable(
        f"no key on this machine may release {desk.model}" + (f" on {channel}" if channel else ""),
        do=f"copy {model_key_path(desk.keys, desk.model)} here, or give --keys DIR; nothing was changed",
        model=desk.model,
        keys=desk.keys,
    )
