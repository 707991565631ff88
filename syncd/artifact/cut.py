"""The cut: which bytes of a checkpoint make which segment, by the rule of FORMATS.md, "Segments".

Pure arithmetic on names, dtypes, shapes and places; cost O(n log n), about 10 µs a tensor, no byte of a file is needed.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from syncd.artifact.segment import MAX_SEGMENT_BYTES, MAX_SEGMENT_ELEMENTS
from syncd.dtypes import ITEM_BYTES, tensor_bytes


class HasLength(Protocol):
    """A segment of which only the length matters."""

    @property
    def length(self) -> int: ...


LARGE_TENSOR_BYTES: Final = 1024 * 1024
"""A tensor of this size or more shares its segments with no other; a group never passes it."""
GROUP_ENDS_ONE_IN: Final = 32


@dataclass(frozen=True, slots=True)
class TensorSource:
    """A tensor of the checkpoint, as the cut sees it.

    `where` is (file, offset of its first byte), its bytes lying densely in storage order from there; None: its bytes
    are supplied by the caller (a view that is not dense). `permutation` lists the dimensions in storage order, None
    where that is row-major. `model`: part of the model view, under `name`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    permutation: tuple[int, ...] | None = None
    model: bool = True
    where: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file of the checkpoint, or a side file; `size` in bytes."""

    size: int


class Piece(NamedTuple):
    """Where `length` bytes of a segment come from: `file` at `offset`, or (file None) the own bytes of `tensor`."""

    length: int
    file: int | None
    offset: int
    tensor: int | None


@dataclass(frozen=True, slots=True)
class SegmentCut:
    """A segment to be encoded: its pieces in order, `length` bytes in all; `dtype` None means opaque."""

    dtype: str | None
    length: int
    model: bool
    pieces: tuple[Piece, ...]


class Span(NamedTuple):
    """`length` bytes of segment number `segment`, from `offset` on."""

    segment: int
    offset: int
    length: int


@dataclass(slots=True)
class Placement:
    """What `place` found: segments in order, how many are the model's, each tensor's place, each file's recipe."""

    segments: list[SegmentCut] = field(default_factory=list)
    model_segments: int = 0
    order: list[int] = field(default_factory=list)
    places: dict[int, tuple[int, int]] = field(default_factory=dict)
    recipes: list[tuple[Span, ...]] = field(default_factory=list)


def place(tensors: Sequence[TensorSource], files: Sequence[FileSource]) -> Placement:
    """Cut everything: the model's tensors, the other tensors, then what is left of each file.

    Raises: ValueError if a tensor does not lie inside its file.
    """
    sizes = [tensor_bytes(each.dtype, each.shape) for each in tensors]
    owned = _owned_ranges(tensors, sizes, files)
    owners = set(itertools.chain.from_iterable(owned))
    result = Placement()
    model = [index for index, each in enumerate(tensors) if each.model]
    others = [index for index, each in enumerate(tensors) if not each.model and index in owners]
    result.order = _by_dtype(tensors, model)
    _cut_tensors(result, tensors, sizes, result.order)
    result.model_segments = len(result.segments)
    _cut_tensors(result, tensors, sizes, _by_dtype(tensors, others))
    for number, source in enumerate(files):
        result.recipes.append(_cut_file(result, tensors, sizes, owned[number], number, source.size))
    return result


def _by_dtype(tensors: Sequence[TensorSource], indices: list[int]) -> list[int]:
    """Wide dtypes first, so that packed tensors stay aligned to their elements; else the order of the checkpoint."""
    return sorted(indices, key=lambda index: (-ITEM_BYTES[tensors[index].dtype], tensors[index].dtype))


def _owned_ranges(
    tensors: Sequence[TensorSource], sizes: list[int], files: Sequence[FileSource]
) -> list[list[int]]:
    """For each file the tensors that own their range of it, by offset: model first, then first come; no two overlap."""
    rank = {True: 0, False: len(tensors)}
    ranges: list[list[tuple[int, int, int, int]]] = [[] for _ in files]
    for index, tensor in enumerate(tensors):
        if tensor.where is None or not sizes[index]:
            continue
        number, offset = tensor.where
        if not 0 <= number < len(files) or offset < 0 or offset + sizes[index] > files[number].size:
            raise ValueError(
                f"tensor {tensor.name!r}: {sizes[index]} bytes at {tensor.where} are not in its file"
            )
        ranges[number].append((offset, offset + sizes[index], rank[tensor.model] + index, index))
    return [list(_without_overlaps(sorted(each))) for each in ranges]


def _without_overlaps(ranges: list[tuple[int, int, int, int]]) -> Iterator[int]:
    """From (first, end, rank, index), sorted, the indices that stay when lower ranks win; each cluster for itself."""
    at = 0
    while at < len(ranges):
        stop, end = at + 1, ranges[at][1]
        while stop < len(ranges) and ranges[stop][0] < end:
            end = max(end, ranges[stop][1])
            stop += 1
        if stop == at + 1:
            yield ranges[at][3]
        else:
            yield from _winners(ranges[at:stop])
        at = stop


def _winners(cluster: list[tuple[int, int, int, int]]) -> list[int]:
    kept: list[tuple[int, int, int]] = []
    for first, end, _rank, index in sorted(cluster, key=lambda each: each[2]):
        at = bisect.bisect_left(kept, (first, end, index))
        clear_before = at == 0 or kept[at - 1][1] <= first
        if clear_before and (at == len(kept) or kept[at][0] >= end):
            kept.insert(at, (first, end, index))
    return [index for _first, _end, index in kept]


def ends_group(name: str) -> bool:
    """Whether a group ends after a tensor of this name: an insertion then moves one group, not all that follow."""
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[0] % GROUP_ENDS_ONE_IN == 0


class _Group:
    """The segment that is being filled."""

    def __init__(self, result: Placement, dtype: str | None, model: bool) -> None:
        self.result, self.dtype, self.model = result, dtype, model
        self.pieces: list[Piece] = []
        self.length = 0

    def add(self, length: int, file: int | None, offset: int, tensor: int | None) -> None:
        """Append bytes; a piece that continues the last one in its file is joined to it."""
        if self.pieces and file is not None:
            last_length, last_file, last_offset, _ = self.pieces[-1]
            if last_file == file and last_offset + last_length == offset:
                self.pieces[-1] = Piece(last_length + length, file, last_offset, None)
                self.length += length
                return
        self.pieces.append(Piece(length, file, offset, tensor))
        self.length += length

    def end(self) -> None:
        """Make it a segment; an empty group leaves nothing."""
        if self.pieces:
            self.result.segments.append(SegmentCut(self.dtype, self.length, self.model, tuple(self.pieces)))
        self.pieces, self.length = [], 0


def _cut_tensors(
    result: Placement, tensors: Sequence[TensorSource], sizes: list[int], order: list[int]
) -> None:
    group = _Group(result, None, True)
    for index in order:
        tensor, size = tensors[index], sizes[index]
        if not size:
            result.places[index] = (0, 0)
            continue
        large = size >= LARGE_TENSOR_BYTES
        if large or tensor.dtype != group.dtype or group.length + size > LARGE_TENSOR_BYTES:
            group.end()
            group.dtype, group.model = tensor.dtype, tensor.model
        result.places[index] = (len(result.segments), group.length)
        file, first = tensor.where if tensor.where is not None else (None, 0)
        own = index if file is None else None
        if not large:
            group.add(size, file, first, own)
            if ends_group(tensor.name):
                group.end()
            continue
        step = min(MAX_SEGMENT_BYTES, MAX_SEGMENT_ELEMENTS * ITEM_BYTES[tensor.dtype])
        for start in range(0, size, step):
            group.add(min(step, size - start), file, first + start, own)
            group.end()
    group.end()


class _Recipe:
    """The spans of a file; one that continues the last one in its segment is joined to it."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.last = (-1, 0, 0)

    def add(self, segment: int, offset: int, length: int) -> None:
        """Append `length` bytes of a segment."""
        last, start, end = self.last
        if segment == last and offset == end:
            self.last = (last, start, end + length)
            return
        if last >= 0:
            self.spans.append(Span(last, start, end - start))
        self.last = (segment, offset, offset + length)

    def finish(self) -> tuple[Span, ...]:
        """The recipe."""
        self.add(-1, 0, 0)
        return tuple(self.spans)


def _cut_file(
    result: Placement,
    tensors: Sequence[TensorSource],
    sizes: list[int],
    owned: list[int],
    number: int,
    size: int,
) -> tuple[Span, ...]:
    """Cut the bytes of a file that no tensor owns, and write down the recipe of the whole file."""
    recipe, opaque = _Recipe(), _Group(result, None, False)
    at = 0
    for index in [*owned, None]:
        where = tensors[index].where if index is not None else (number, size)
        first = where[1] if where is not None else 0
        while at < first:
            length = min(first - at, MAX_SEGMENT_BYTES - opaque.length)
            recipe.add(len(result.segments), opaque.length, length)
            opaque.add(length, number, at, None)
            at += length
            if opaque.length == MAX_SEGMENT_BYTES:
                opaque.end()
        if index is not None:
            for span in running(result.places[index], sizes[index], result.segments):
                recipe.add(*span)
            at = first + sizes[index]
    opaque.end()
    return recipe.finish()


def running(place: tuple[int, int], length: int, segments: Sequence[HasLength]) -> Iterator[Span]:
    """The spans of `length` bytes that begin at (segment, offset) and run on through the segments that follow."""
    segment, offset = place
    while length:
        part = min(length, segments[segment].length - offset)
        yield Span(segment, offset, part)
        length -= part
        segment, offset = segment + 1, 0
