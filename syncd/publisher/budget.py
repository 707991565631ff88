"""A bound on the bytes that are in memory at once, whatever the size of the checkpoint."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

SEGMENT_LIMIT: Final = 16 * 2**20
IN_FLIGHT_LIMIT: Final = 48 * 2**20
"""What is being read, waits for its pack, or is being put; with the copy that closing a pack takes, 64 MiB in all."""


class ByteBudget:
    """Lends bytes up to `limit`, first come first served; whoever reads a segment borrows before it reads.

    Nothing waits for ever: a borrower asks for at most `SEGMENT_LIMIT`, the open pack holds no more than that, and
    everything else that has borrowed (a worker, a put) gives back without needing more.
    """

    def __init__(self, limit: int = IN_FLIGHT_LIMIT) -> None:
        self.limit = limit
        self.lent = 0
        self.peak = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def borrow(self, count: int) -> None:
        """Wait until `count` bytes are free and take them; ValueError where that can never be."""
        if count > self.limit:
            raise ValueError(f"{count} bytes asked of a budget of {self.limit}")
        if not self._waiting and self.lent + count <= self.limit:
            self._take(count)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((count, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back(count)
            else:
                self._waiting = deque(entry for entry in self._waiting if entry[1] is not turn)
                self._wake()
            raise

    def give_back(self, count: int) -> None:
        """Return `count` borrowed bytes."""
        self.lent -= count
        self._wake()

    def _take(self, count: int) -> None:
        self.lent += count
        self.peak = max(self.peak, self.lent)

    def _wake(self) -> None:
        while self._waiting and self.lent + self._waiting[0][0] <= self.limit:
            count, turn = self._waiting.popleft()
            if not turn.done():
                self._take(count)
                turn.set_result(None)
