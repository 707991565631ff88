"""What a pickle may use: many times what the largest honest checkpoint needed, little enough to be harmless.

The largest seen: 540,106 opcodes and 1.6 MB for 16,000 tensors; 55,166 opcodes and 141 KB for a YOLO checkpoint.
"""

from __future__ import annotations

from typing import Final

MAX_OPS: Final = 50_000_000
MAX_MEMO: Final = 5_000_000
MAX_MARKS: Final = 100_000
MAX_LONG_BYTES: Final = 4096
MAX_LINE_BYTES: Final = 65_536
KEPT_BYTES: Final = 65_536  # a longer string becomes a Blob: nothing that we read is that long
MAX_INT_KEY: Final = 1 << 53
MAX_GLOBALS: Final = 10_000
MAX_KEY_DEPTH: Final = 3  # of tuples within a tuple that is a key


def ops_budget(records: int) -> int:
    """How many opcodes a pickle beside `records` storages may have: 34 to 38 a tensor were the most ever seen."""
    return min(MAX_OPS, 5_000_000 + 256 * records)
