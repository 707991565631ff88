"""The SHA-256 of each file out of the bytes that pass by as segments, so that a checkpoint is read once, not twice.

Segments come in the order of their files, but for what is grouped (small tensors of another dtype, the bytes between
tensors): such gaps are read again, and so is whatever did not pass in order, when all segments are through.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Final

from syncd.publisher.material import Material

_GAP_LIMIT: Final = 4 * 2**20
_CHUNK: Final = 2**20


@dataclass
class _File:
    size: int
    digest: Any
    position: int = 0


class FileHashes:
    """One running digest for each file of a material. Blocking; one call at a time."""

    def __init__(self, material: Material) -> None:
        self._material = material
        self._files = [_File(file.size, hashlib.sha256()) for file in material.files]
        self.read_again = 0
        """Bytes that were read a second time."""

    def feed(self, index: int, data: memoryview) -> None:
        """Take the bytes of segment `index`, which have just been read."""
        at = 0
        for piece in self._material.segments[index].pieces:
            if piece.file is not None:
                self._take(piece.file, piece.offset, data[at : at + piece.length])
            at += piece.length

    def finish(self) -> tuple[str, ...]:
        """`sha256:HEX` of every file, in order."""
        for number, file in enumerate(self._files):
            self._read(number, file.size)
        return tuple(f"sha256:{file.digest.hexdigest()}" for file in self._files)

    def _take(self, number: int, offset: int, data: memoryview) -> None:
        file = self._files[number]
        if offset + len(data) <= file.position or offset - file.position > _GAP_LIMIT:
            return
        self._read(number, offset)
        file.digest.update(data[file.position - offset :])
        file.position = offset + len(data)

    def _read(self, number: int, end: int) -> None:
        file = self._files[number]
        while file.position < end:
            part = bytearray(min(_CHUNK, end - file.position))
            self._material.pread_into(number, file.position, memoryview(part))
            file.digest.update(part)
            file.position += len(part)
            self.read_again += len(part)
