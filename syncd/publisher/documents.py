"""Objects that have one possible content: created once, and what lies there already must be equal."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from syncd.errors import LostRace, ObjectExists
from syncd.store.base import Create, Store
from syncd.trust import names

_MAX_IN_FLIGHT: Final = 4


async def put_documents(store: Store, model: str, documents: Mapping[str, bytes]) -> None:
    """Create objects by their names below the model's folder, a few at once. Raises as `put_same`."""
    slots = asyncio.Semaphore(_MAX_IN_FLIGHT)

    async def put(name: str, data: bytes) -> None:
        async with slots:
            await put_same(store, model, name, data)

    try:
        async with asyncio.TaskGroup() as group:
            for name, data in documents.items():
                group.create_task(put(name, data))
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from failed


async def put_same(store: Store, model: str, name: str, data: bytes) -> None:
    """Create an object that has one possible content.

    Raises:
        LostRace: it is there with another one. StoreErrors.
    """
    key = names.model_key(model, name)
    try:
        await store.put(key, data, mode=Create())
    except ObjectExists as error:
        found = await store.get(key, limit=len(data) + 1)
        if found.data != data:
            raise LostRace(
                f"{name} is there with other content",
                do="nothing is lost: claim another version",
                model=model,
            ) from error
