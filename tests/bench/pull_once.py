"""One pull in a process of its own, measured: prints one JSON object with seconds, CPU and the result.

python tests/bench/pull_once.py '{"store": {…}, "root": …, "model": …, "to": …}'
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any


async def once(given: dict[str, Any]) -> dict[str, Any]:
    """Open the store, then measure one pull."""
    from syncd.config import StoreSection
    from syncd.edge.pull import pull
    from syncd.store.open import open_store

    store = open_store(StoreSection(**given["store"]))
    began = time.monotonic()
    result = await pull(store, Path(given["root"]).read_bytes(), given["model"], to=Path(given["to"]))
    await store.aclose()
    return {
        "seconds": time.monotonic() - began,
        "result": {
            "version": result.version,
            "wire_bytes": result.wire_bytes,
            "model_bytes": result.model_bytes,
        },
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(once(json.loads(sys.argv[1])))))
