"""Reading exact byte ranges of a held descriptor: pread, never a mapping, so a truncated file cannot kill us."""

from __future__ import annotations

import os
from typing import Final

from syncd.checkpoint.values import Incomplete

_ONE_CALL: Final = 1 << 30


class Source:
    """One open file and the size it had when it was opened; the descriptor stays its opener's."""

    def __init__(self, descriptor: int, size: int, name: str) -> None:
        self.descriptor = descriptor
        self.size = size
        self.name = name

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`; Incomplete if the file does not have them."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise Incomplete(f"bytes {offset} to {offset + length} are beyond the file's {self.size}")
        parts = []
        while length:
            part = os.pread(self.descriptor, min(length, _ONE_CALL), offset)
            if not part:
                raise Incomplete(f"the file was cut to {offset} bytes while it was read")
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def head(self, length: int) -> bytes:
        """The first bytes, as many as there are up to `length`."""
        return self.read(0, min(length, self.size))
