"""One checkpoint, open and cut: what a version is made from, and the bytes behind each segment.

Files are read with pread on descriptors that were open before the first byte was looked at; nothing is mapped.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from syncd.artifact.head import Use
from syncd.artifact.layout import FileSource, Layout, SegmentCut, cut
from syncd.checkpoint.read import Checkpoint, open_checkpoint
from syncd.checkpoint.select import Selection, select_model
from syncd.config import PublishSection
from syncd.errors import CheckpointUnsupported, CheckpointVanished, DocumentInvalid
from syncd.publisher.sidefiles import SideFile, open_side_files
from syncd.publisher.tensors import NamedTensors, name_tensors


@dataclass(frozen=True)
class MaterialFile:
    """A file as the head lists it. use: model (nothing but the served tensors), training, or side."""

    path: str
    use: Use
    size: int


class Material:
    """An open checkpoint with its side files and their cut; a context manager whose methods block."""

    def __init__(self, checkpoint: Checkpoint, selection: Selection, side: tuple[SideFile, ...]) -> None:
        self.checkpoint = checkpoint
        self.selection = selection
        self.named: NamedTensors = name_tensors(checkpoint.tensors, selection)
        self._side: tuple[SideFile, ...] = ()
        self._view: tuple[int, Callable[[int], int]] | None = None
        self.has_golden = False
        self._own = _OwnBytes(checkpoint, self.named.indices)
        self._cut(side)

    def in_file_order(self) -> list[int]:
        """The segments' numbers in the order in which their bytes lie in the files; own bytes come last."""

        def place(index: int) -> tuple[int, int]:
            first = self.segments[index].pieces[0]
            return (len(self.files), index) if first.file is None else (first.file, first.offset)

        return sorted(range(len(self.segments)), key=place)

    def _cut(self, side: tuple[SideFile, ...]) -> None:
        self._side = side
        use = self._uses()
        self.files: tuple[MaterialFile, ...] = (
            *(
                MaterialFile(file.path, use[index], file.size)
                for index, file in enumerate(self.checkpoint.files)
            ),
            *(MaterialFile(each.path, "side", each.size) for each in side),
        )
        sources = [FileSource(file.size) for file in self.files]
        self.layout, self.segments = self._layout_of(sources)

    def _layout_of(self, files: list[FileSource]) -> tuple[Layout, tuple[SegmentCut, ...]]:
        return cut(self.named.sources, files, self.named.aliases)

    def _uses(self) -> list[Use]:
        """A file is of use `model` if it holds the model's tensors and nothing that only training needs."""
        chosen = {each.tensor for each in self.selection.tensors}
        plain = not self.selection.key and not self.checkpoint.scalars
        uses: list[Use] = []
        for number in range(len(self.checkpoint.files)):
            held = [index for index, record in enumerate(self.checkpoint.tensors) if record.file == number]
            only_model = bool(held) and all(index in chosen for index in held)
            uses.append("model" if plain and only_model else "training")
        return uses

    @property
    def checkpoint_bytes(self) -> int:
        """The bytes of the checkpoint's own files, side files apart."""
        return sum(file.size for file in self.files if file.use != "side")

    def add_golden(self, golden: Path) -> None:
        """Take the golden sample at `golden` (it may be unlinked afterwards) along, as the last side file."""
        (added,) = open_side_files(golden, None, (), golden)
        self.has_golden = True
        self._cut((*self._side, added))

    def use_view(self, view: tuple[int, Callable[[int], int]] | None) -> None:
        """Read the model's segments from a copy of the model view: (descriptor, place of a segment); None: no more."""
        self._view = view

    def read_segment(self, index: int, buffer: memoryview) -> None:
        """Fill `buffer`, of exactly the segment's length, with the bytes of segment `index`."""
        wanted = self.segments[index]
        if self._view and wanted.model:
            descriptor, place = self._view
            _pread_all(descriptor, place(index), buffer)
            return
        done = 0
        for piece in wanted.pieces:
            part = buffer[done : done + piece.length]
            if piece.file is not None:
                self.pread_into(piece.file, piece.offset, part)
            elif piece.tensor is not None:
                self._own.copy_into(piece.tensor, piece.offset, part)
            done += piece.length

    def pread_into(self, file: int, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from byte `offset` of file number `file`; CheckpointChanged if it has become shorter."""
        own = len(self.checkpoint.files)
        if file < own:
            self.checkpoint.pread_into(file, offset, buffer)
        else:
            self._side[file - own].pread_into(offset, buffer)

    def check_unchanged(self) -> bool:
        """False: only a ctime changed, so the bytes must be read again; CheckpointChanged if anything else did."""
        for each in self._side:
            each.check_unchanged()
        return self.checkpoint.check_unchanged()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give every descriptor back."""
        for each in self._side:
            each.close()
        self._side = ()
        self.checkpoint.close()


class _OwnBytes:
    """Bytes of tensors that lie nowhere densely: one tensor is kept at a time, since segments come in order."""

    def __init__(self, checkpoint: Checkpoint, indices: tuple[int, ...]) -> None:
        self._checkpoint, self._indices = checkpoint, indices
        self._lock = threading.Lock()
        self._kept: tuple[int, bytes] = (-1, b"")

    def copy_into(self, tensor: int, offset: int, buffer: memoryview) -> None:
        with self._lock:
            if self._kept[0] != tensor:
                self._kept = (-1, b"")
                self._kept = (tensor, self._checkpoint.read_tensor(self._indices[tensor]))
            data = memoryview(self._kept[1])
        buffer[:] = data[offset : offset + len(buffer)]


def _pread_all(descriptor: int, offset: int, buffer: memoryview) -> None:
    done = 0
    while done < len(buffer):
        count = os.preadv(descriptor, [buffer[done:]], offset + done)
        if not count:
            raise CheckpointVanished("the copy of the model view ended early", do="nothing was published")
        done += count


def open_material(path: Path, section: PublishSection) -> Material:
    """Open a checkpoint and its side files and cut them.

    Raises:
        what `open_checkpoint` and `select_model` raise; Failed for a side file that is missing or unreadable.
    """
    with contextlib.ExitStack() as opened:
        checkpoint = opened.enter_context(open_checkpoint(path))
        selection = select_model(
            checkpoint, key=section.weights.key, strip_prefix=section.weights.strip_prefix
        )
        side = open_side_files(path, section.watch, section.side_files)
        for each in side:
            opened.callback(each.close)
        try:
            material = Material(checkpoint, selection, side)
        except DocumentInvalid as error:
            raise CheckpointUnsupported(
                f"{path.name} cannot be written down as a version: {error.what}",
                why="a tensor has a name or a shape that no version may hold",
                do="nothing was published; the checkpoint is as it was",
            ) from error
        opened.pop_all()
        return material
