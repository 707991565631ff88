"""The next signed state of a model: roles, snapshot, and the timestamp that makes them visible by compare-and-set.

Numbered metadata is create-only and signed for exactly the number it gets; what a killed or beaten publisher left
behind is skipped by gaps. So a number is never used for two contents, and a loser has destroyed nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from syncd.errors import KeyUnusable, LostRace, ObjectChanged, StoreDishonest
from syncd.store.base import IfMatch, Store
from syncd.trust import names
from syncd.trust.facts import ChannelFacts
from syncd.trust.founding import put_next
from syncd.trust.sign import ModelSigner, SignedRole, Target
from syncd.trust.verify import SignedState, Written

SIGNING_STEPS: Final = (
    "publisher.before_roles",
    "publisher.before_snapshot",
    "publisher.before_timestamp",
    "publisher.after_timestamp",
)
Step = Callable[[str], None]


def no_step(name: str) -> None:
    """The step of those who watch none."""
    del name


async def sign_next(
    store: Store,
    signer: ModelSigner,
    state: SignedState,
    changes: Mapping[str, Target | None],
    *,
    targets: SignedRole | None = None,
    ready: Mapping[str, SignedRole] | None = None,
    step: Step = no_step,
) -> Written:
    """Sign the changed roles, a snapshot over all, and move the timestamp if it is still that of `state`.

    Args:
        targets: new top-level delegations that the fleet key has signed and that lie in the store already.
        ready: roles of `changes` that their own keys have signed elsewhere, verified, and that lie in the store.
        step: called with each name of SIGNING_STEPS when it is reached.
    Raises:
        LostRace: somebody else moved it.
        KeyUnusable: a role is signed by a key that is not here; nothing was written.
    """
    if targets is None:
        for role in changes.keys() - (ready or {}).keys():
            refuse_foreign_key(signer, state, role)
    step("publisher.before_roles")
    files = {
        role: each for role, each in state.files.items() if role not in ("root", "timestamp", "snapshot")
    }
    if targets is not None:
        files["targets"] = targets
    files |= ready or {}
    for role, target in changes.items():
        if ready and role in ready:
            continue
        files[role] = await _put_role(store, signer, role, target, files[role].number if role in files else 0)
    step("publisher.before_snapshot")
    number, data = await put_next(
        store,
        signer.model,
        lambda number: names.metadata(number, "snapshot"),
        state.files["snapshot"].number + 1,
        lambda number: signer.sign_snapshot(number, files),
    )
    files["snapshot"] = SignedRole(number, data)
    hints = {role: _hint(state, role, file, changes) for role, file in files.items()}
    step("publisher.before_timestamp")
    return await _move_timestamp(store, signer, state, files, hints, step)


async def _move_timestamp(
    store: Store,
    signer: ModelSigner,
    state: SignedState,
    files: Mapping[str, SignedRole],
    hints: Mapping[str, list[str]],
    step: Step,
) -> Written:
    """The one step that makes everything visible, or LostRace."""
    if state.etag is None:
        raise StoreDishonest("the store gives no ETag to compare with", store=store.url)
    number = state.files["timestamp"].number + 1
    timestamp = await asyncio.to_thread(signer.sign_timestamp, number, files["snapshot"], hints)
    try:
        etag = await store.put(
            names.model_key(signer.model, names.TIMESTAMP), timestamp, mode=IfMatch(state.etag)
        )
    except ObjectChanged as error:
        raise LostRace(
            f"another publisher of {signer.model} committed first",
            do="nothing is lost: plan anew against what it committed",
            model=signer.model,
        ) from error
    step("publisher.after_timestamp")
    return Written(etag, {**files, "timestamp": SignedRole(number, timestamp)})


async def _put_role(
    store: Store, signer: ModelSigner, role: str, target: Target | None, last: int
) -> SignedRole:
    number, data = await put_next(
        store,
        signer.model,
        lambda number: names.metadata(number, role),
        last + 1,
        lambda number: signer.sign_role(role, number, target),
    )
    return SignedRole(number, data)


def channel_target(facts: ChannelFacts) -> Target:
    """The single target of a channel's role: the released version's head."""
    return Target(names.head(facts.version), facts.head_digest, facts.head_length, facts.custom())


def committed_target(state: SignedState, role: str) -> Target | None:
    """The target that a channel's role or `versions` has in `state`."""
    channel = names.role_channel(role)
    if channel is not None:
        facts = state.channels.get(channel)
        return None if facts is None else channel_target(facts)
    ref = state.receipts.index if role == names.VERSIONS_ROLE else None
    return None if ref is None else Target(ref.name, ref.digest, ref.length)


def _hint(state: SignedState, role: str, file: SignedRole, changes: Mapping[str, Target | None]) -> list[str]:
    target = changes[role] if role in changes else committed_target(state, role)
    return [names.metadata(file.number, role), *([] if target is None else [target.name])]


def refuse_foreign_key(signer: ModelSigner, state: SignedState, role: str) -> None:
    """Raise KeyUnusable unless the key that may sign `role` is on this machine."""
    if signer.key_of(role).public_key.keyid not in state.keys.get(role, ()):
        raise KeyUnusable(
            f"{role} is signed by a key of its own, which is not on this machine",
            do=f"run it where that key is, or copy it to KEYS/channels/{signer.model}/",
            model=signer.model,
        )
