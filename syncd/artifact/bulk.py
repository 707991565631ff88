"""Making very many small objects at once."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def not_collecting() -> Iterator[None]:
    """Pause the cycle collector while a large document becomes objects.

    They all live on and form no cycle; looking at them again and again would double the time. Of two threads that
    overlap, one may run the rest of its block with the collector on: slower, no harm.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
