"""Which segments of a download are on disk and verified: what a kill or power cut cannot take back.

A line is added only after the segment's bytes are durable, so a line is always true; a torn last line is no line. The
first line names the version's head: a journal of another version, or of another format, is thrown away.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from syncd import durable

_FORMAT: Final = "syncd.journal/1"


class Journal:
    """The journal of one download. Not safe for two threads at once.

    Args:
        path: the file; its folder exists.
        identity: the head's digest and the face.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path = path
        first = f"{_FORMAT} {identity}\n".encode()
        try:
            found = path.read_bytes()
        except FileNotFoundError:
            found = b""
        if not found.startswith(first):
            durable.replace_file(path, first, 0o600)
            found = first
        whole = found[: found.rfind(b"\n") + 1]
        self.done = {int(line) for line in whole[len(first) :].split(b"\n") if line.isdigit()}
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        os.ftruncate(self._descriptor, len(whole))
        os.lseek(self._descriptor, 0, os.SEEK_END)

    def add(self, segments: Iterable[int]) -> None:
        """Remember segments whose bytes are durable already; durable when this returns."""
        numbers = sorted(set(segments) - self.done)
        if numbers:
            durable.write_all(self._descriptor, "".join(f"{number}\n" for number in numbers).encode())
            os.fdatasync(self._descriptor)
            self.done |= set(numbers)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)
