"""One of many publishers, or the collector beside them, in a process of its own, for tests that kill it.

    python -m tests.support.many_publishers BASE publish NAME     publishes BASE/NAME-*.pt in turn, each once
    python -m tests.support.many_publishers BASE collect          sweeps until BASE/stop is there

BASE has root.json, keys and store.json (a `[store]` section). `publish` appends "FILE VERSION" to BASE/NAME.log, and
what is there already is not published again; `collect` appends what it retired to BASE/collector.log. The collector's
clock runs BASE/ahead seconds before the real one.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

from syncd.config import KeepSection, PublishSection, StoreSection
from syncd.errors import LostRace
from syncd.publisher.commit import open_model
from syncd.publisher.publish import Place, publish_at
from syncd.publisher.retention import sweep
from syncd.publisher.version import Labels
from syncd.state.db import Database
from syncd.store.open import open_store

KEEP = KeepSection(versions=4, training_state=2)


def note(path: Path, line: str) -> None:
    """Append a line, durably: a kill after it cannot take it back."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, f"{line}\n".encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lines(path: Path) -> list[list[str]]:
    """The words of each line that was noted."""
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


async def publish(base: Path, name: str) -> None:
    """Publish what is left of this machine's checkpoints."""
    section = PublishSection(model="m", watch=base)
    store = open_store(StoreSection(**json.loads((base / "store.json").read_text())))
    state = base / f"state-{name}"
    state.mkdir(exist_ok=True)
    with Database(state / "state.db") as db:
        place = Place(store, (base / "root.json").read_bytes(), base / "keys", db, state / "trust")
        finished = {file for file, _ in lines(base / f"{name}.log")}
        paths = sorted(base.glob(f"{name}-*.pt"))
        for path in [each for each in paths if each.name not in finished]:
            while True:
                try:
                    result = await publish_at(place, path, section, Labels("latest"))
                    break
                except LostRace:
                    continue
            note(base / f"{name}.log", f"{path.name} {result.version}")
    await store.aclose()


async def collect(base: Path) -> None:
    """Sweep again and again."""
    store = open_store(StoreSection(**json.loads((base / "store.json").read_text())))
    root = (base / "root.json").read_bytes()
    repository = await open_model(store, "m", root, base / "keys", base / "collector")
    last = False
    while not last:
        last = (base / "stop").exists()
        ahead = float((base / "ahead").read_text())
        try:
            swept = await sweep(repository, KEEP, clock=lambda ahead=ahead: time.time() + ahead)
        except LostRace:
            continue
        for version in swept.retired:
            note(base / "collector.log", f"retired {version}")
        if swept.objects:
            note(base / "collector.log", f"deleted {swept.objects}")
        await asyncio.sleep(0.05)
    await store.aclose()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    asyncio.run(publish(folder, sys.argv[3]) if sys.argv[2] == "publish" else collect(folder))
