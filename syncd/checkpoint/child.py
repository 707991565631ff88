"""The child process that parses a checkpoint: limits first, then the file, then one JSON answer on standard output.

Started by isolate.py as `python -I -S -c …`: it imports the standard library and this room, nothing else.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
from typing import Any, Final

MEMORY_BYTES: Final = 480 << 20
CPU_SECONDS: Final = 18


def set_limits() -> None:
    """Address space, CPU time, no files written, no core; the number of processes stays: it counts the whole user."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def answer(descriptor: int, size: int, name: str) -> dict[str, Any]:
    """`{"tables": …}`, or `{"outcome": incomplete | hostile | unsupported, "what": …}`."""
    from syncd.checkpoint.formats.registry import parse_file
    from syncd.checkpoint.source import Source
    from syncd.checkpoint.values import Hostile, Incomplete, Unsupported

    try:
        return {"tables": parse_file(Source(descriptor, size, name)).as_json()}
    except Incomplete as error:
        return {"outcome": "incomplete", "what": str(error)}
    except Unsupported as error:
        return {"outcome": "unsupported", "what": str(error)}
    except Hostile as error:
        return {"outcome": "hostile", "what": str(error)}
    except RecursionError:
        return {"outcome": "hostile", "what": "it is nested too deeply"}
    except MemoryError:
        return {
            "outcome": "hostile",
            "what": f"reading it takes more than {MEMORY_BYTES >> 20} MiB of memory",
        }
    except OSError as error:
        return {"outcome": "unreadable", "what": os.strerror(error.errno or 0)}


def main() -> None:
    """Arguments: descriptor, size, name."""
    gc.disable()  # this process lives for one value; collecting its cycles would only take time
    set_limits()
    sys.set_int_max_str_digits(5000)
    result = answer(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    try:
        raw = json.dumps(result, separators=(",", ":")).encode("ascii")
    except MemoryError:
        raw = b'{"outcome":"hostile","what":"its table of tensors does not fit in memory"}'
    left = memoryview(raw)
    while left:
        left = left[os.write(1, left) :]
    os._exit(0)  # taking a huge value apart again would cost as much as reading it
