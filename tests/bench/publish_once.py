"""One publish in a process of its own, measured: prints one JSON object with seconds, CPU, memory and the result.

python tests/bench/publish_once.py '{"path": …, "store": {…}, "root": …, "keys": …, "state": …, "model": …}'
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any

PAGE = resource.getpagesize()


def rss_bytes() -> int:
    """What this process holds in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


class PeakRss:
    """The largest resident size while the block runs, looked at every 5 ms."""

    def __enter__(self) -> PeakRss:
        self.peak = rss_bytes()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._end.wait(0.005):
            self.peak = max(self.peak, rss_bytes())

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


async def once(given: dict[str, Any]) -> dict[str, Any]:
    """Import and open everything, then measure one publish."""
    from syncd.config import PublishSection, StoreSection
    from syncd.publisher.publish import publish
    from syncd.state.db import Database
    from syncd.store.open import open_store

    state = Path(given["state"])
    state.mkdir(parents=True, exist_ok=True)
    store = open_store(StoreSection(**given["store"]))
    section = PublishSection(model=given["model"], watch=Path(given["path"]).parent)
    more = {"store": store, "trust_root": Path(given["root"]).read_bytes(), "keys": Path(given["keys"])}
    with Database(state / "state.db") as db:
        if given.get("warm"):
            await publish(Path(given["warm"]), section=section, db=db, **more)
        idle, began, cpu = rss_bytes(), time.monotonic(), time.process_time()
        with PeakRss() as watched:
            result = await publish(Path(given["path"]), section=section, db=db, **more)
    await store.aclose()
    return {
        "seconds": time.monotonic() - began,
        "cpu_s": time.process_time() - cpu,
        "idle_bytes": idle,
        "peak_bytes": watched.peak,
        "result": {
            "version": result.version,
            "uploaded_bytes": result.uploaded_bytes,
            "segments": dict(result.segments),
        },
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(once(json.loads(sys.argv[1])))))
