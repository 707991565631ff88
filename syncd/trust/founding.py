"""The first signed objects of a fleet and of a model: create-only, so that a killed `init` goes on where it was.

A model exists from the moment its timestamp does; everything before that is skipped by gaps if an `init` was killed,
except its root 2, which is taken over if it names the same keys.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from syncd.errors import KeyUnusable, LostRace, NotAuthentic, ObjectExists, ObjectMissing
from syncd.store.base import Create, Store
from syncd.trust import names
from syncd.trust.limits import ROOT_BYTES, TIMESTAMP_BYTES
from syncd.trust.sign import (
    MODEL_FIELD,
    ModelSigner,
    SignedRole,
    sign_fleet_root,
    sign_model_root,
    sign_targets,
)

if TYPE_CHECKING:
    from securesystemslib.signer import Key, Signer

_MAX_GAP: Final = 100_000


async def put_next(
    store: Store, model: str, name: Callable[[int], str], first: int, make: Callable[[int], bytes]
) -> tuple[int, bytes]:
    """Create the first number from `first` that is free, with what `make` signs for exactly that number."""
    for number in range(first, first + _MAX_GAP):
        data = await asyncio.to_thread(make, number)
        try:
            await store.put(names.model_key(model, name(number)), data, mode=Create())
        except ObjectExists:
            continue
        return number, data
    raise LostRace(f"no free number from {first} for {name(first)}", model=model)


async def read_fleet_root(store: Store) -> bytes | None:
    """The store's fleet root, not yet trusted; None where there is none."""
    try:
        return (await store.get(names.FLEET_ROOT, limit=ROOT_BYTES)).data
    except ObjectMissing:
        return None


async def found_fleet(store: Store, fleet: Signer) -> bytes:
    """The fleet root, made by `fleet` or made before by the same key.

    Raises:
        KeyUnusable: the store belongs to another fleet key; nothing was changed.
    """
    try:
        root = await asyncio.to_thread(sign_fleet_root, fleet)
        await store.put(names.FLEET_ROOT, root, mode=Create())
    except ObjectExists:
        root = (await store.get(names.FLEET_ROOT, limit=ROOT_BYTES)).data
    await asyncio.to_thread(refuse_other_fleet, root, fleet)
    return root


def refuse_other_fleet(root: bytes, fleet: Signer) -> None:
    """Raise KeyUnusable unless `root` is signed by `fleet` and names it for every root to come."""
    signed, verified = _read_root(root, fleet)
    if not verified or fleet.public_key.keyid not in signed.roles["root"].keyids:
        raise KeyUnusable(
            "the store's fleet root is signed by another key than this fleet key",
            do="use the KEYS folder of the `syncd init` that made the store, or another store; nothing was changed",
        )


async def model_exists(store: Store, model: str) -> bool:
    """Whether a model's first timestamp is there."""
    try:
        await store.get(names.model_key(model, names.TIMESTAMP), limit=TIMESTAMP_BYTES)
    except ObjectMissing:
        return False
    return True


async def found_model(
    store: Store, model: str, root: bytes, fleet: Signer, signer: ModelSigner, channels: tuple[str, ...]
) -> bool:
    """Sign a model's first metadata: roots, delegations, empty roles, snapshot, timestamp; False if it exists already.

    Args:
        root: the fleet's, which becomes the model's root 1 byte for byte.
        signer: with the model's online key, and the own keys of the channels that have one.
    Raises:
        KeyUnusable: an earlier root names other keys; nothing that was there is replaced.
    """
    if await model_exists(store, model):
        return False
    await _put_root_one(store, model, root)
    await _put_root_two(store, model, fleet, signer.online)
    files = await _put_first_roles(store, fleet, signer, channels)
    hints = {role: [names.metadata(each.number, role)] for role, each in files.items()}
    timestamp = await asyncio.to_thread(signer.sign_timestamp, 1, files["snapshot"], hints)
    try:
        await store.put(names.model_key(model, names.TIMESTAMP), timestamp, mode=Create())
    except ObjectExists:
        return False
    return True


async def _put_first_roles(
    store: Store, fleet: Signer, signer: ModelSigner, channels: tuple[str, ...]
) -> dict[str, SignedRole]:
    """Empty `versions` and channels, the delegations to them, and the snapshot over all."""

    async def put(role: str, make: Callable[[int], bytes]) -> SignedRole:
        return SignedRole(
            *await put_next(store, signer.model, lambda number: names.metadata(number, role), 1, make)
        )

    files: dict[str, SignedRole] = {}
    keys: dict[str, Key] = {}
    for role in (names.VERSIONS_ROLE, *map(names.channel_role, channels)):
        keys[role] = signer.key_of(role).public_key
        files[role] = await put(role, functools.partial(signer.sign_role, role, target=None))
    files["targets"] = await put("targets", lambda number: sign_targets(fleet, signer.model, number, keys))
    files["snapshot"] = await put("snapshot", lambda number: signer.sign_snapshot(number, files))
    return files


async def put_targets(
    store: Store, model: str, fleet: Signer, before: SignedRole, added: Mapping[str, Key]
) -> SignedRole:
    """New delegations beside those of `before` (the verified `targets`), signed by the fleet key."""
    keys = {**await asyncio.to_thread(delegated_keys, before.data), **added}
    number, data = await put_next(
        store,
        model,
        lambda number: names.metadata(number, "targets"),
        before.number + 1,
        lambda number: sign_targets(fleet, model, number, keys),
    )
    return SignedRole(number, data)


def delegated_keys(targets: bytes) -> dict[str, Key]:
    """Signing role → key, out of verified `targets`."""
    from tuf.api.metadata import Metadata, Targets

    delegations = Metadata[Targets].from_bytes(targets).signed.delegations
    if delegations is None or delegations.roles is None:
        return {}
    return {role: delegations.keys[each.keyids[0]] for role, each in delegations.roles.items()}


async def _put_root_one(store: Store, model: str, root: bytes) -> None:
    key = names.model_key(model, names.metadata(1, "root"))
    try:
        await store.put(key, root, mode=Create())
    except ObjectExists as error:
        if (await store.get(key, limit=ROOT_BYTES)).data != root:
            raise NotAuthentic(
                f"root 1 of {model} is not the fleet's root",
                do="nothing was changed: it needs another store",
                key=key,
            ) from error


async def _put_root_two(store: Store, model: str, fleet: Signer, online: Signer) -> None:
    key = names.model_key(model, names.metadata(2, "root"))
    data = await asyncio.to_thread(sign_model_root, fleet, online.public_key, model)
    try:
        await store.put(key, data, mode=Create())
    except ObjectExists as error:
        data = (await store.get(key, limit=ROOT_BYTES)).data
        signed, verified = await asyncio.to_thread(_read_root, data, fleet)
        right_model = signed.unrecognized_fields.get(MODEL_FIELD) == model
        if not (verified and right_model and online.public_key.keyid in signed.roles["timestamp"].keyids):
            raise KeyUnusable(
                f"root 2 of {model} names other keys than those here",
                do="use the KEYS folder of the `syncd init` that made it; nothing was changed",
                key=key,
            ) from error


def _read_root(data: bytes, fleet: Signer) -> tuple[Any, bool]:
    """A root, and whether the fleet key has signed it."""
    from securesystemslib.exceptions import UnverifiedSignatureError
    from tuf.api.exceptions import RepositoryError
    from tuf.api.metadata import Metadata, Root

    try:
        metadata = Metadata[Root].from_bytes(data)
        signature = metadata.signatures.get(fleet.public_key.keyid)
        if not isinstance(metadata.signed, Root) or signature is None:
            return metadata.signed, False
        fleet.public_key.verify_signature(signature, metadata.signed_bytes)
    except UnverifiedSignatureError:
        return metadata.signed, False
    except RepositoryError as error:
        raise NotAuthentic("the store's root is not signed metadata", do="nothing was changed") from error
    return metadata.signed, True
