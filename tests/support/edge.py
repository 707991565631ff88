"""An edge in this process, and followers in others, for tests that look at it from outside."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from syncd.config import FollowSection, StoreSection
from syncd.edge.follow import Follow
from syncd.edge.transitions import State
from syncd.node.followers import FollowerReport, Registration, register
from syncd.node.links import ModelFolder, NodeFolder
from syncd.state.db import Database
from syncd.store.open import open_store
from tests.support.published import PublishedStore

WITHIN_S = 15.0


class Edge:
    """A running `Follow` and what one sees of it."""

    def __init__(self, follow: Follow, db: Database, task: asyncio.Task[None]) -> None:
        self.follow = follow
        self.db = db
        self.task = task
        self.folder: ModelFolder = follow.folder

    @property
    def serving(self) -> int | None:
        return self.folder.read_link("current")

    @property
    def state(self) -> State:
        return self.follow.standing.state

    @property
    def still(self) -> bool:
        """Whether it has polled and rests."""
        return self.follow.last_poll is not None and self.state is State.IDLE

    async def until(self, condition: Callable[[], Any], within: float = WITHIN_S) -> None:
        """Wait for a condition; the edge must not have ended meanwhile."""
        deadline = time.monotonic() + within
        while not condition():
            if self.task.done():
                self.task.result()
            if time.monotonic() > deadline:
                shown = await asyncio.to_thread(self.follow.snapshot)
                raise AssertionError(f"it never came; the edge: {shown}")
            await asyncio.sleep(0.01)

    async def serves(self, version: int) -> None:
        """Wait until it serves the version and stands still."""
        await self.until(lambda: self.serving == version and self.still)

    async def polled(self) -> None:
        """Poll once more, and wait until that is over."""
        before = self.follow.last_poll
        self.follow.poll_now()
        await self.until(lambda: self.follow.last_poll != before)


def section(model: str = "m", **keys: Any) -> FollowSection:
    defaults = {"poll": "1h", "probation": "50ms", "gate_within": "5s"}
    return FollowSection(model=model, **{**defaults, **keys})


@contextlib.asynccontextmanager
async def edge(published: PublishedStore, node: Path, store: Any = None, **keys: Any) -> AsyncIterator[Edge]:
    """Run an edge on a node folder; on leaving it has ended as by SIGTERM."""
    folder = NodeFolder(node)
    with folder.daemon_lock(), Database(node / "state.db") as db:
        opened = store or open_store(StoreSection(url=str(published.url)))
        follow = Follow(
            section(published.model, **keys),
            store=opened,
            trust_root=published.signed.root,
            node=folder,
            db=db,
            retry_s=0.05,
        )
        task = asyncio.create_task(follow.run(asyncio.Event()))
        try:
            yield Edge(follow, db, task)
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            if store is None:
                await opened.aclose()


@contextlib.contextmanager
def follower(folder: ModelFolder) -> Iterator[Registration]:
    """A follower of this process; it says what the test lets it say."""
    registration = register(folder)
    registration.write(FollowerReport())
    try:
        yield registration
    finally:
        registration.close()


FOLLOWER = """
import sys, time
from pathlib import Path
from syncd.node.followers import FollowerReport, register
from syncd.node.links import NodeFolder
registration = register(NodeFolder(Path(sys.argv[1])).model_folder(sys.argv[2]))
registration.write(FollowerReport())
print("up", registration.id, flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def silent_follower(node: Path, model: str) -> Iterator[subprocess.Popen[bytes]]:
    """A follower in a process of its own that never votes; the test may kill it."""
    child = subprocess.Popen([sys.executable, "-c", FOLLOWER, str(node), model], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline().startswith(b"up")
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def assert_serves(folder: ModelFolder, tensors: dict[str, np.ndarray]) -> None:
    """The version that `current` points at is whole and has exactly these tensors, as any safetensors reader sees."""
    found = load_file(folder.path / "current" / "model.safetensors")
    assert set(found) == set(tensors)
    for name, each in tensors.items():
        np.testing.assert_array_equal(found[name], each)
