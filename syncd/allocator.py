"""What glibc's allocator keeps of a daemon's memory: few heaps while it works, and nothing spare when it is idle.

Elsewhere (musl) both calls do nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
from typing import Final

_M_ARENA_MAX: Final = -8
_ARENAS: Final = 2


def bound_arenas() -> None:
    """Keep glibc from giving every thread a heap of its own, each of which holds what its thread once needed.

    Measured on publishing 1 GB: 90 MiB less, at the same speed.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)


def give_back() -> None:
    """Return what is free to the system; takes milliseconds. Call it when a large piece of work has ended."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
