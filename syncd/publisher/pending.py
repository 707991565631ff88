"""Roles that a channel's own key has signed and that wait in the store for somebody with the online key.

`leave_pending` is the signer's half, `commit_pending` the publisher's: what verifies and is newer than what is
committed is committed; what was overtaken is deleted; what does not verify is left where it lies, and told once.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from syncd.errors import NotAuthentic, ObjectExists, ObjectMissing, Refused, StoreError
from syncd.publisher.commit import ModelRepository, Release
from syncd.store.base import Create
from syncd.trust import names
from syncd.trust.facts import ChannelFacts
from syncd.trust.founding import put_next
from syncd.trust.keys import channel_key_path, load_key
from syncd.trust.limits import ROLE_BYTES
from syncd.trust.pending import PendingRole, channel_signer, parse_pending, verify_pending
from syncd.trust.signing import channel_target, refuse_foreign_key

_MAX_GAP: Final = 1000
_MAX_READ: Final = (
    16  # roles of one channel that a look reads: who can write there cannot keep a publisher busy
)
log = logging.getLogger("syncd.publisher")


async def leave_pending(
    repository: ModelRepository, facts: ChannelFacts, keys: Path
) -> tuple[ChannelFacts, str]:
    """Sign the channel's role with its own key alone and leave it for a publisher; → what it says, and its name.

    A release that waits already is overtaken by the next number: the publisher commits the highest.
    Raises:
        KeyUnusable: the key is not here, or not the one that signs the channel; nothing was written.
    """
    state = await repository.state()
    role = names.channel_role(facts.channel)
    own = await asyncio.to_thread(load_key, channel_key_path(keys, repository.model, facts.channel))
    signer = channel_signer(repository.model, facts.channel, own)
    refuse_foreign_key(signer, state, role)
    taken = [release for channel, release in await waiting(repository) if channel == facts.channel]
    facts = replace(facts, release=max([facts.release, *(each + 1 for each in taken)]))
    for _ in range(_MAX_GAP):
        target = channel_target(facts)
        _, data = await put_next(
            repository.store,
            repository.model,
            lambda number: names.metadata(number, role),
            state.files[role].number + 1,
            functools.partial(signer.sign_role, role, target=target),
        )
        name = names.pending(facts.channel, facts.release)
        try:
            await repository.store.put(names.model_key(repository.model, name), data, mode=Create())
        except ObjectExists:
            facts = replace(facts, release=facts.release + 1)
            continue
        return facts, name
    raise NotAuthentic("too many releases wait to be committed", model=repository.model)


async def waiting(repository: ModelRepository) -> list[tuple[str, int]]:
    """(channel, release) of every role in `pending/`, whoever put it there."""
    folder = names.model_key(repository.model, "pending")
    start = len(folder) - len("pending")
    found = [parse_pending(each.key[start:]) async for each in repository.store.list(folder)]
    return sorted(each for each in found if each is not None)


@dataclass(frozen=True)
class Committed:
    """What became of the roles that waited. refused: (name, why)."""

    releases: tuple[Release, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()


async def commit_pending(repository: ModelRepository) -> Committed:
    """Commit, for each channel, the highest waiting release that verifies; delete what was overtaken.

    Raises:
        LostRace: somebody committed first; nothing is lost, look again. KeyUnusable, NotAuthentic, StoreErrors.
    """
    await repository.load()
    names_there = await waiting(repository)
    chosen, refused = await verified(repository, names_there)
    if chosen:
        changes = {
            names.channel_role(channel): channel_target(each.facts) for channel, each in chosen.items()
        }
        ready = {names.channel_role(channel): each.role for channel, each in chosen.items()}
        await repository.sign(changes, ready=ready)
        repository.channels |= {channel: each.facts for channel, each in chosen.items()}
    for channel, release in names_there:
        now = repository.channels.get(channel)
        if now is not None and release <= now.release:
            with contextlib.suppress(StoreError):
                await repository.store.delete(
                    names.model_key(repository.model, names.pending(channel, release))
                )
    done = [
        Release(repository.model, each.facts.version, channel, each.facts.release)
        for channel, each in chosen.items()
    ]
    return Committed(tuple(done), tuple(refused))


async def verified(
    repository: ModelRepository, names_there: list[tuple[str, int]]
) -> tuple[dict[str, PendingRole], list[tuple[str, str]]]:
    """Channel → the highest waiting role that may be committed now; and what may not, with the reason."""
    chosen: dict[str, PendingRole] = {}
    refused: list[tuple[str, str]] = []
    read: Counter[str] = Counter()
    for channel, release in sorted(names_there, reverse=True):
        committed = repository.channels.get(channel)
        overtaken = committed is not None and release <= committed.release
        if channel in chosen or channel not in repository.channels or overtaken:
            continue
        read[channel] += 1
        if read[channel] > _MAX_READ:
            continue
        try:
            chosen[channel] = await _read(repository, channel, release)
        except (Refused, ObjectMissing) as error:
            refused.append((names.pending(channel, release), error.what))
    return chosen, refused


async def _read(repository: ModelRepository, channel: str, release: int) -> PendingRole:
    state, model, store = await repository.state(), repository.model, repository.store
    blob = await store.get(names.model_key(model, names.pending(channel, release)), limit=ROLE_BYTES)
    found = await asyncio.to_thread(verify_pending, state, model, channel, release, blob.data, time.time())
    number = names.model_key(model, names.metadata(found.role.number, names.channel_role(channel)))
    with contextlib.suppress(ObjectExists):
        await store.put(number, blob.data, mode=Create())
    if (await store.get(number, limit=ROLE_BYTES)).data != blob.data:
        raise NotAuthentic(f"its number {found.role.number} has another content", model=model)
    _refuse_unfit(repository, found.facts)
    return found


def _refuse_unfit(repository: ModelRepository, facts: ChannelFacts) -> None:
    """A release of a version that is not kept as it says, or that takes a yank back, is committed by nobody."""
    before, entry = repository.channels.get(facts.channel), repository.index.find(facts.version)
    yanked = set(facts.yanked)
    stays = before is not None and before.version == facts.version
    problem = ""
    if entry is None or (entry.head.digest, entry.head.length) != (facts.head_digest, facts.head_length):
        problem = f"version {facts.version} is not kept, or has another head"
    elif (entry.yanked or facts.version in yanked) and not stays:
        problem = f"version {facts.version} was yanked"
    elif before is not None and not set(before.yanked) <= yanked:
        problem = f"it does not know that {sorted(set(before.yanked) - yanked)} were yanked: promote again"
    if problem:
        raise NotAuthentic(problem, model=repository.model, channel=facts.channel)
