"""The stream of segments: read, hashed, compared with what the store has, encoded, packed and put, a few at a time.

Segments are read and encoded by two threads, and packed in the order of the file whatever thread is done first: the
same checkpoint makes the same packs, so an attempt after a crash finds its own.
"""

from __future__ import annotations

import asyncio
import functools
import secrets
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, TypeVar

from syncd import allocator
from syncd.artifact import codecs
from syncd.artifact.finite import count_nonfinite
from syncd.artifact.pack import Pack, PackWriter
from syncd.artifact.segment import Row, digest
from syncd.errors import first_of
from syncd.publisher.budget import ByteBudget
from syncd.publisher.filehash import FileHashes
from syncd.publisher.material import Material

WORKERS: Final = 2
PUTS_IN_FLIGHT: Final = 4

T = TypeVar("T")
_Turn = tuple[bytearray, asyncio.Future["Encoded"]]
Progress = Callable[[int, int, str], None]
"""Called with bytes done, bytes in all, and what is being done."""


@dataclass(frozen=True)
class Encoded:
    """One segment after its turn in a thread; without a payload where its digest is known already."""

    index: int
    digest: str
    data: memoryview
    codec: int = 0
    payload: bytes | memoryview | None = None
    finite: bool = True


@dataclass
class Outcome:
    """What became of all segments. not_finite: numbers of new segments of the model with a NaN or infinity in them.

    rows and file_digests are in the order of the layout's segments and of the material's files.
    """

    rows: tuple[Row, ...] = ()
    file_digests: tuple[str, ...] = ()
    new: int = 0
    packed_bytes: int = 0
    not_finite: list[int] = field(default_factory=list)


def encode_segment(material: Material, index: int, known: Mapping[str, Row], buffer: bytearray) -> Encoded:
    """Read, hash and, if its digest is new, encode segment `index`. Blocking; mostly without the GIL.

    Args:
        buffer: at least as long as the segment; `data` of the result, and a raw payload, are views of it.
    """
    cut = material.segments[index]
    data = memoryview(buffer)[: cut.length]
    material.read_segment(index, data)
    name = digest(data)
    if name in known:
        return Encoded(index, name, data)
    codec, payload = codecs.encode_plain(data, cut.dtype)
    return Encoded(index, name, data, codec, payload, not cut.model or count_nonfinite(data, cut.dtype) == 0)


class SegmentStream:
    """Carries all segments of one material into packs, once.

    Args:
        known: rows of segments that already lie in the store, by digest.
        put: stores one pack; called for up to `PUTS_IN_FLIGHT` packs at once.
        progress: told the segments' bytes as they are done with.
        budget: bounds the bytes of segments and packs in memory; each thread's encoder needs a segment more.
    """

    def __init__(
        self,
        material: Material,
        known: Mapping[str, Row],
        put: Callable[[Pack], Awaitable[None]],
        progress: Progress,
        budget: ByteBudget | None = None,
    ) -> None:
        self._material = material
        self._known = dict(known)
        self._put = put
        self._progress = progress
        self._budget = budget or ByteBudget()
        self._total = sum(cut.length for cut in material.segments)
        self._done = 0
        self._digests = [""] * len(material.segments)
        self._hashes = FileHashes(material)
        self._outcome = Outcome()
        # A pack's name is never given twice, so a pack that retention deletes is nobody's by then (retention.py).
        self._writer = PackWriter(copy=secrets.randbits(32))
        self._open: set[str] = set()
        self._borrowed = 0
        self._waiting = 0
        self._puts = asyncio.Semaphore(PUTS_IN_FLIGHT)
        self._window = asyncio.Semaphore(WORKERS)
        longest = max((cut.length for cut in material.segments), default=0)
        self._buffers = [bytearray(longest) for _ in range(WORKERS)]
        # Threads of our own, few and lasting: the allocator keeps for each thread what it once needed.
        self._encoders = ThreadPoolExecutor(WORKERS, thread_name_prefix="syncd-encode")
        self._packer = ThreadPoolExecutor(1, thread_name_prefix="syncd-pack")

    async def run(self) -> Outcome:
        """Carry everything; on return every pack is stored. The first error ends it, and no thread is left reading."""
        allocator.set_up()
        turns: asyncio.Queue[_Turn | None] = asyncio.Queue()
        try:
            async with asyncio.TaskGroup() as group:
                reader = group.create_task(self._read(turns))
                await self._pack(turns, group)
                await reader
            self._outcome.file_digests = await self._in_packer(self._hashes.finish)
        except BaseExceptionGroup as errors:
            raise first_of(errors) from None
        finally:
            await asyncio.shield(asyncio.to_thread(self._end_threads))
        self._outcome.rows = tuple(self._known[name] for name in self._digests)
        return self._outcome

    def _end_threads(self) -> None:
        self._encoders.shutdown(wait=True, cancel_futures=True)
        self._packer.shutdown(wait=True, cancel_futures=True)
        self._buffers.clear()

    async def _in_packer(self, work: Callable[..., T], *given: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._packer, work, *given)

    async def _read(self, turns: asyncio.Queue[_Turn | None]) -> None:
        loop = asyncio.get_running_loop()
        for index in self._material.in_file_order():
            await self._budget.borrow(self._material.segments[index].length)
            await self._window.acquire()
            buffer = self._buffers.pop()
            work = functools.partial(encode_segment, self._material, index, self._known, buffer)
            turns.put_nowait((buffer, loop.run_in_executor(self._encoders, work)))
        turns.put_nowait(None)

    async def _pack(self, turns: asyncio.Queue[_Turn | None], group: asyncio.TaskGroup) -> None:
        while (turn := await turns.get()) is not None:
            buffer, encoding = turn
            encoded = await encoding
            self._digests[encoded.index] = encoded.digest
            new = encoded.digest not in self._known and encoded.digest not in self._open
            pack = await self._in_packer(self._absorb, encoded, new)
            length = len(encoded.data)
            kept = len(encoded.payload) if new and encoded.payload is not None else 0
            name = encoded.digest
            del turn, encoding, encoded
            self._buffers.append(buffer)
            self._window.release()
            if pack is not None:
                await self._send(pack, group)
            self._account(name, length, kept, new)
            del pack
        last = await self._in_packer(self._writer.finish)
        if last is not None:
            await self._send(last, group)

    def _account(self, name: str, length: int, kept: int, new: bool) -> None:
        """Give back what is not kept: all of a known segment, of a new one what encoding has saved."""
        self._budget.give_back(length - kept)
        if new:
            self._open.add(name)
            self._borrowed += kept
            self._waiting += length
        else:
            self._advance(length)

    def _absorb(self, encoded: Encoded, new: bool) -> Pack | None:
        """Hash a segment's part of its file and add its payload to the open pack; returns the pack that this ended."""
        self._hashes.feed(encoded.index, encoded.data)
        if not new or encoded.payload is None:
            return None
        if not encoded.finite:
            self._outcome.not_finite.append(encoded.index)
        self._outcome.new += 1
        payload = encoded.payload if isinstance(encoded.payload, bytes) else bytes(encoded.payload)
        return self._writer.add(encoded.digest, encoded.codec, payload, len(encoded.data))

    async def _send(self, pack: Pack, group: asyncio.TaskGroup) -> None:
        """Put a pack in the background; waits while four puts are in flight."""
        await self._puts.acquire()
        borrowed, self._borrowed = self._borrowed, 0
        length, self._waiting = self._waiting, 0
        self._open = set()
        self._known.update({row.digest: row for row in pack.rows})
        self._outcome.packed_bytes += len(pack.data)
        group.create_task(self._store(pack, borrowed, length))

    async def _store(self, pack: Pack, borrowed: int, length: int) -> None:
        try:
            await self._put(pack)
        finally:
            self._puts.release()
            self._budget.give_back(borrowed)
        self._advance(length)

    def _advance(self, count: int) -> None:
        self._done += count
        self._progress(self._done, self._total, "publishing")
