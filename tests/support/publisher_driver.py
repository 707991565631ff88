"""A publisher in a process of its own, for tests that kill it: runs until the folder is published, then exits 0.

    python -m tests.support.publisher_driver BASE [VERSIONS]

BASE is a `make_publishing` folder with root.json; the state lies in BASE/state or $PUBLISHER_STATE, the store in
BASE/store or $PUBLISHER_STORE. It ends when nothing is pending and the index has VERSIONS (default 1) versions.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

from syncd.config import PublishSection, StoreSection
from syncd.publisher.pipeline import Publisher
from syncd.state.db import Database
from syncd.store.open import open_store

WITHIN_S = 90.0


async def main(base: Path, versions: int) -> int:
    """The exit status."""
    state = Path(os.environ.get("PUBLISHER_STATE", base / "state"))
    store = open_store(StoreSection(url=os.environ.get("PUBLISHER_STORE", str(base / "store"))))
    section = PublishSection.model_validate(
        {"model": "m", "watch": str(base / "runs"), "settle": "0s", "rescan": "200ms", "backfill": "all"}
    )
    with Database(state / "state.db") as db:
        publisher = Publisher(
            section,
            store=store,
            trust_root=(base / "root.json").read_bytes(),
            keys=base / "keys",
            db=db,
            folder=state / "trust",
        )
        task = asyncio.create_task(publisher.run(asyncio.Event()))
        end = time.monotonic() + WITHIN_S
        while time.monotonic() < end and not task.done():
            told = publisher.snapshot()
            if told["state"] == "idle" and told["seen"] >= versions and not told["pending"]:
                task.cancel()
                return 0
            await asyncio.sleep(0.02)
        print(publisher.snapshot(), file=sys.stderr)
        if task.done():
            task.result()
        return 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1)))
