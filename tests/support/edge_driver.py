"""One edge as a process: follows a model of a folder store until it stands still on a version, then exits 0.

`python -m tests.support.edge_driver NODE STORE ROOT MODEL [--until VERSION] [--probation S] [--within S]`. Prints one
JSON line when it is done. Exit status 3: the time was up.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from syncd.config import FollowSection, StoreSection
from syncd.edge.follow import Follow
from syncd.edge.transitions import State
from syncd.node.links import NodeFolder
from syncd.state.db import Database
from syncd.store.open import open_store


async def drive(options: argparse.Namespace) -> int:
    section = FollowSection(
        model=options.model,
        poll="1s",
        keep=2,
        probation=f"{options.probation}s",
        gate_within=f"{options.gate_within}s",
        probation_errors=1,
    )
    node = NodeFolder(options.node)
    with node.daemon_lock(), Database(options.node / "state.db") as db:
        store = open_store(StoreSection(url=str(options.store)))
        root = options.root.read_bytes()
        follow = Follow(section, store=store, trust_root=root, node=node, db=db, retry_s=0.1)
        task = asyncio.create_task(follow.run(asyncio.Event()))
        try:
            if options.wish is not None:
                await until_it_polled(follow, task)
                await follow.obey(options.wish, None, "test")
            done = await settle(follow, options, task)
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await store.aclose()
        print(json.dumps({**follow.snapshot(), "done": done}), flush=True)
    return 0 if done else 3


async def until_it_polled(follow: Follow, task: asyncio.Task[None]) -> None:
    while True:
        if follow.last_poll is not None or task.done():
            return
        await asyncio.sleep(0.02)


async def settle(follow: Follow, options: argparse.Namespace, task: asyncio.Task[None]) -> bool:
    deadline = time.monotonic() + options.within
    while time.monotonic() < deadline:
        if task.done():
            task.result()
        still = follow.standing.state is State.IDLE and follow.standing.intention is None
        serves = follow.folder.read_link("current") == options.until
        if still and serves and follow.last_poll is not None and follow.wanted() is None:
            return True
        await asyncio.sleep(0.02)
    return False


def warm() -> None:
    """Import all that a run needs, without starting a thread."""
    import apscheduler.schedulers.asyncio
    import apscheduler.triggers.interval
    import numpy
    import tuf.ngclient
    import zstandard

    import syncd.store.folder
    import syncd.trust.updating

    del apscheduler, numpy, syncd, tuf, zstandard


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("node", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("root", type=Path)
    parser.add_argument("model")
    parser.add_argument("--until", type=int)
    parser.add_argument("--probation", type=float, default=0.1)
    parser.add_argument("--gate-within", type=float, default=1.0)
    parser.add_argument("--within", type=float, default=20.0)
    parser.add_argument("--wish", help="a command without a version, told after the first poll")
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, force=True)
    return asyncio.run(drive(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
