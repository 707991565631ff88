"""Bytes that a download may hold in memory."""

from __future__ import annotations

import asyncio


class Budget:
    """Bytes that may be in flight; an amount above the whole budget waits until nothing else is."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._changed = asyncio.Condition()

    async def take(self, amount: int) -> None:
        """Wait until `amount` fits."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._used == 0 or self._used + amount <= self._limit)
            self._used += amount

    async def give(self, amount: int) -> None:
        """Return what was taken."""
        async with self._changed:
            self._used -= amount
            self._changed.notify_all()
