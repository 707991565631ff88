"""Proves a store honest before a publisher trusts it: real conditional puts, raced, on names of its own.

Some S3 servers take the condition and ignore it. With such a store two publishers destroy each other's releases.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Iterator

from syncd.errors import (
    ObjectChanged,
    ObjectExists,
    ObjectMissing,
    StoreBroken,
    StoreCannot,
    StoreDishonest,
    StoreError,
    StoreReadOnly,
)
from syncd.store.base import Create, IfMatch, Mode, Store

FOLDER = "_syncd-probe"
RACERS = 8
LIMIT = 4096


async def probe(store: Store) -> None:
    """Put, race, read back and remove a few small objects under `_syncd-probe/`.

    Raises:
        StoreReadOnly: nothing can be written to it at all.
        StoreDishonest: it ignores or lacks create-only or compare-and-set; `why` names every fault found.
        StoreDenied, StoreUnreachable, StoreFull: it could not be tried.
    """
    if not store.capabilities.write:
        raise StoreReadOnly(f"{store.url} can only be read", do="publish to the folder or bucket behind it")
    token = secrets.token_hex(8)
    trials = {"create": _create_only, "set": _compare_and_set, "race": _raced_create, "race-set": _raced_set}
    faults: list[str] = []
    try:
        for name, trial in trials.items():
            with _noted(faults):
                await trial(store, f"{FOLDER}/{token}-{name}", faults)
    finally:
        await asyncio.shield(_clean(store, [f"{FOLDER}/{token}-{name}" for name in (*trials, "set-none")]))
    if faults:
        raise StoreDishonest(
            f"{store.url} does not honour conditional puts",
            why="; ".join(dict.fromkeys(faults)),
            do="keep the store in a folder or on a server with If-None-Match and If-Match; nothing was published",
            store=store.url,
        )


async def _create_only(store: Store, key: str, faults: list[str]) -> None:
    await store.put(key, b"first", mode=Create())
    if await _lands(store, key, b"second", Create()):
        faults.append("a create-only put replaced an object")
    await _check(store, key, b"first", faults)
    if await store.get_range(key, 1, 3) != b"irs":
        faults.append("a range holds other bytes")


async def _compare_and_set(store: Store, key: str, faults: list[str]) -> None:
    first = await store.put(key, b"first", mode=Create())
    if first is None:
        faults.append("a put returns no ETag to compare with")
        return
    second = await store.put(key, b"second", mode=IfMatch(first))
    if second == first:
        faults.append("the ETag does not change with the content")
    if await _lands(store, key, b"third", IfMatch(first)):
        faults.append("a put over a stale ETag replaced an object")
    await _check(store, key, b"second", faults)
    if await _lands(store, f"{key}-none", b"first", IfMatch(first)):
        faults.append("a put over an ETag made an object out of nothing")


async def _raced_create(store: Store, key: str, faults: list[str]) -> None:
    await _race(store, key, Create(), "create-only", faults)


async def _raced_set(store: Store, key: str, faults: list[str]) -> None:
    etag = await store.put(key, b"start", mode=Create())
    await _race(store, key, IfMatch(etag or ""), "compare-and-set", faults)


async def _race(store: Store, key: str, mode: Mode, name: str, faults: list[str]) -> None:
    entries = [f"racer {i}".encode() for i in range(RACERS)]
    landed = await asyncio.gather(*(_lands(store, key, entry, mode) for entry in entries))
    winners = [entry for entry, won in zip(entries, landed, strict=True) if won]
    if len(winners) != 1:
        faults.append(f"{len(winners)} of {RACERS} racing {name} puts won")
    else:
        await _check(store, key, winners[0], faults)


async def _lands(store: Store, key: str, data: bytes, mode: Mode) -> bool:
    try:
        await store.put(key, data, mode=mode)
    except (ObjectExists, ObjectChanged):
        return False
    return True


async def _check(store: Store, key: str, expected: bytes, faults: list[str]) -> None:
    if (await store.get(key, limit=LIMIT)).data != expected:
        faults.append("an object does not hold what was put last")


@contextlib.contextmanager
def _noted(faults: list[str]) -> Iterator[None]:
    """What an honest store never does in a trial is a fault, not a reason to stop."""
    try:
        yield
    except StoreCannot as error:
        faults.append(f"conditional puts are not offered ({error.what})")
    except (ObjectExists, ObjectChanged) as error:
        faults.append(f"a put that had to land was refused ({error.code})")
    except (ObjectMissing, StoreBroken) as error:
        faults.append(f"what was just put cannot be read ({error.code})")


async def _clean(store: Store, keys: list[str]) -> None:
    for key in keys:
        with contextlib.suppress(
            StoreError
        ):  # the error that matters is on its way; deleting may not be permitted
            await store.delete(key)
