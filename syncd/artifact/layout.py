"""The layout: the model's tensors, the cut of the segments, and the recipe of each file; equal from version to version.

Names, dtypes and sizes only: paths and digests live in the head and the segment table, so that versions of one
training run share one layout and an edge fetches it once.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple

from syncd.artifact.bulk import not_collecting
from syncd.artifact.cut import (
    FileSource,
    Piece,
    SegmentCut,
    Span,
    TensorSource,
    place,
    running,
)
from syncd.artifact.fields import (
    MAX_INTEGER,
    MAX_NAME_BYTES,
    Fields,
    compress,
    decompress,
    invalid,
    is_text,
    needs_newer,
    read_document,
    shown,
    unique,
    write_document,
)
from syncd.artifact.segment import MAX_SEGMENT_BYTES, MAX_SEGMENT_ELEMENTS
from syncd.dtypes import ITEM_BYTES, element_count

__all__ = [
    "FileRecipe",
    "FileSource",
    "Layout",
    "Piece",
    "SegmentCut",
    "SegmentEntry",
    "Span",
    "TensorEntry",
    "TensorSource",
    "cut",
]

MAX_LAYOUT_BYTES: Final = 256 * 1024 * 1024
"""Of the JSON; the frame that holds it is refused where it declares more."""
MAX_TENSORS: Final = 2**20
MAX_SEGMENTS: Final = 2**22
MAX_FILES: Final = 2**16
MAX_SPANS: Final = 2**23
MAX_DIMS: Final = 64

_DTYPE: Final = re.compile(r"[A-Z][A-Z0-9_]{0,31}")


class TensorEntry(NamedTuple):
    """A tensor of the model view: its bytes, in storage order, begin at (segment, offset) and run on from there.

    `permutation` lists the dimensions in storage order, None where that is row-major. A tensor without elements lies
    at (0, 0) and takes part in nothing.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    permutation: tuple[int, ...] | None
    segment: int
    offset: int

    @property
    def nbytes(self) -> int:
        """The tensor's size in bytes."""
        return ITEM_BYTES[self.dtype] * element_count(self.shape)

    @property
    def storage_shape(self) -> tuple[int, ...]:
        """The shape in storage order: row-major under this shape, the bytes are as they lie."""
        return self.shape if self.permutation is None else tuple(self.shape[dim] for dim in self.permutation)


@dataclass(frozen=True, slots=True)
class SegmentEntry:
    """A segment: dtype (None: opaque), decoded length in bytes, and whether it is the model's."""

    dtype: str | None
    length: int
    model: bool


@dataclass(frozen=True, slots=True)
class FileRecipe:
    """A file of `size` bytes: its spans, one after the other, are the file."""

    size: int
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Layout:
    """How a version is cut. The model's segments come first: numbers 0 to `model_segments` - 1."""

    tensors: tuple[TensorEntry, ...]
    aliases: Mapping[str, str]
    segments: tuple[SegmentEntry, ...]
    model_segments: int
    files: tuple[FileRecipe, ...]

    @cached_property
    def model_starts(self) -> tuple[int, ...]:
        """Where each of the model's segments begins in the model view; one more entry: the bytes of all of them."""
        lengths = (each.length for each in self.segments[: self.model_segments])
        return tuple(itertools.accumulate(lengths, initial=0))

    @property
    def model_bytes(self) -> int:
        """The bytes of the model view."""
        return self.model_starts[-1]

    def tensor_place(self, tensor: TensorEntry) -> int:
        """Where the tensor's first byte lies in the model view."""
        return self.model_starts[tensor.segment] + tensor.offset

    def tensor_spans(self, tensor: TensorEntry) -> Iterator[Span]:
        """The parts of segments that are the tensor's bytes, in order."""
        return running((tensor.segment, tensor.offset), tensor.nbytes, self.segments)

    def file_segments(self, files: Sequence[int]) -> set[int]:
        """The segments that the recipes of these files name."""
        return {span.segment for number in files for span in self.files[number].spans}

    def to_bytes(self, *, copy: int = 0) -> bytes:
        """The document: JSON in one zstd frame that declares its size; another `copy` gives other bytes."""
        return compress(self.plain(copy=copy))

    def plain(self, *, copy: int = 0) -> bytes:
        """The document before compression: equal for equal layouts."""
        fields = {
            "tensors": [_tensor_fields(each) for each in self.tensors],
            "aliases": dict(self.aliases),
            "segments": [{"dtype": each.dtype, "length": each.length} for each in self.segments],
            "model_segments": self.model_segments,
            "files": [
                {"size": each.size, "spans": list(itertools.chain.from_iterable(each.spans))}
                for each in self.files
            ],
            **({"copy": copy} if copy else {}),
        }
        return write_document("layout", fields, MAX_LAYOUT_BYTES)

    @classmethod
    @not_collecting()
    def parse(cls, data: bytes) -> Layout:
        """Read and check the document.

        Raises:
            DocumentInvalid: a size, name, place or recipe is out of bounds, or the tensors do not tile the segments.
            NeedsNewerSyncd: a later format, requirement or dtype.
        """
        fields = read_document("layout", decompress("layout", data, MAX_LAYOUT_BYTES), MAX_LAYOUT_BYTES)
        model_segments = fields.integer("model_segments", 0, MAX_SEGMENTS)
        numbers = itertools.count()
        segments = fields.objects(
            "segments", MAX_SEGMENTS, lambda each: _read_segment(each, next(numbers) < model_segments)
        )
        if model_segments > len(segments):
            raise fields.wrong("model_segments", f"there are {len(segments)} segments")
        tensors = fields.objects("tensors", MAX_TENSORS, _read_tensor)
        unique("layout", "tensor", (each.name for each in tensors))
        _check_tiling(tensors, segments[:model_segments])
        aliases = _read_aliases(fields, {each.name for each in tensors})
        files = fields.objects("files", MAX_FILES, lambda each: _read_recipe(each, segments))
        return cls(tensors, aliases, segments, model_segments, files)


@not_collecting()
def cut(
    tensors: Sequence[TensorSource], files: Sequence[FileSource], aliases: Mapping[str, str]
) -> tuple[Layout, tuple[SegmentCut, ...]]:
    """Cut a checkpoint into segments by the rule of FORMATS.md.

    Args:
        tensors: in the order of the checkpoint's tensor table; of tied ones only the first, the others in `aliases`.
            Where the ranges of two overlap, the first (the model's before others) owns the file's bytes; a later one
            of the model gets a copy of its own, a later other one is left to the rest of the file.
        files: in the order of the head; side files too.
        aliases: further name → name in `tensors`.
    Returns: the layout, and for each of its segments, in order, where the bytes come from.
    Raises:
        DocumentInvalid: a name, shape, alias or count that no layout may hold.
        ValueError: a tensor lies outside its file.
    """
    for tensor in tensors:
        _check_source(tensor)
    unique("layout", "tensor", (each.name for each in tensors if each.model))
    placement = place(tensors, files)
    entries = tuple(_entry(tensors[index], *placement.places[index]) for index in placement.order)
    _check_aliases(aliases, {each.name for each in entries})
    layout = Layout(
        tensors=entries,
        aliases=dict(aliases),
        segments=tuple(SegmentEntry(each.dtype, each.length, each.model) for each in placement.segments),
        model_segments=placement.model_segments,
        files=tuple(
            FileRecipe(source.size, spans) for source, spans in zip(files, placement.recipes, strict=True)
        ),
    )
    _check_counts(layout)
    return layout, tuple(placement.segments)


def _check_counts(layout: Layout) -> None:
    for what, count, limit in (
        ("tensors", len(layout.tensors), MAX_TENSORS),
        ("segments", len(layout.segments), MAX_SEGMENTS),
        ("files", len(layout.files), MAX_FILES),
        ("spans of files", sum(len(each.spans) for each in layout.files), MAX_SPANS),
    ):
        if count > limit:
            raise invalid("layout", f"{count} {what}, {limit} are allowed")


def is_tensor_name(name: str) -> bool:
    """1 to 1024 bytes of UTF-8 without control characters; not the name that safetensors keeps for itself."""
    return bool(name) and name != "__metadata__" and is_text(name, MAX_NAME_BYTES)


def _entry(source: TensorSource, segment: int, offset: int) -> TensorEntry:
    permutation = source.permutation if source.permutation != tuple(range(len(source.shape))) else None
    return TensorEntry(source.name, source.dtype, tuple(source.shape), permutation, segment, offset)


def _check_source(tensor: TensorSource) -> None:
    name, shape, order = tensor.name, tensor.shape, tensor.permutation
    if tensor.model and not is_tensor_name(name):
        raise invalid("layout", f"the name {shown(name)} is not 1 to {MAX_NAME_BYTES} bytes of plain text")
    if tensor.dtype not in ITEM_BYTES:
        raise invalid("layout", f"tensor {shown(name)} has the dtype {shown(tensor.dtype)}")
    if len(shape) > MAX_DIMS or (shape and not 0 <= min(shape) <= max(shape) <= MAX_INTEGER):
        raise invalid("layout", f"tensor {shown(name)} has the shape {shown(shape)}")
    if order is not None and sorted(order) != list(range(len(shape))):
        raise invalid("layout", f"tensor {shown(name)} has the permutation {shown(order)}")


def _tensor_fields(tensor: TensorEntry) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "name": tensor.name,
        "dtype": tensor.dtype,
        "shape": list(tensor.shape),
        "segment": tensor.segment,
        "offset": tensor.offset,
    }
    if tensor.permutation is not None:
        fields["permutation"] = list(tensor.permutation)
    return fields


def _read_dtype(fields: Fields) -> str:
    dtype = fields.match("dtype", _DTYPE, "the name of a dtype is needed")
    if dtype not in ITEM_BYTES:
        raise needs_newer("layout", f"the dtype {dtype} is not known here")
    return dtype


def _read_segment(fields: Fields, model: bool) -> SegmentEntry:
    if "dtype" in fields.fields and fields.fields["dtype"] is None and not model:
        return SegmentEntry(None, fields.integer("length", 1, MAX_SEGMENT_BYTES), model)
    dtype = _read_dtype(fields)
    item = ITEM_BYTES[dtype]
    length = fields.integer("length", item, min(MAX_SEGMENT_BYTES, MAX_SEGMENT_ELEMENTS * item))
    if length % item:
        raise fields.wrong("length", f"a multiple of {item} is needed for {dtype}")
    return SegmentEntry(dtype, length, model)


def _read_tensor(fields: Fields) -> TensorEntry:
    name = fields.text("name", MAX_NAME_BYTES)
    if not is_tensor_name(name):
        raise fields.wrong("name", "a tensor's name is needed")
    dtype = _read_dtype(fields)
    shape = fields.list("shape", MAX_DIMS)
    if not all(type(size) is int and 0 <= size <= MAX_INTEGER for size in shape):
        raise fields.wrong("shape", "integers from 0 on are needed")
    permutation: tuple[int, ...] | None = None
    if fields.has("permutation"):
        listed = fields.list("permutation", MAX_DIMS)
        if not all(type(dim) is int for dim in listed) or sorted(listed) != list(range(len(shape))):
            raise fields.wrong("permutation", "each dimension once is needed")
        permutation = tuple(listed) if listed != sorted(listed) else None
    segment, offset = (
        fields.integer("segment", 0, MAX_SEGMENTS),
        fields.integer("offset", 0, MAX_SEGMENT_BYTES),
    )
    tensor = TensorEntry(name, dtype, tuple(shape), permutation, segment, offset)
    if tensor.nbytes > MAX_INTEGER:
        raise fields.wrong("shape", "it is too large")
    return tensor


def _check_tiling(tensors: Sequence[TensorEntry], segments: Sequence[SegmentEntry]) -> None:
    """The tensors, in order, fill the model's segments without gap or overlap, each in segments of its dtype."""
    segment, offset = 0, 0
    for tensor in tensors:
        left = tensor.nbytes
        if (tensor.segment, tensor.offset) != ((segment, offset) if left else (0, 0)):
            raise invalid("layout", f"tensor {shown(tensor.name)} does not lie where the one before it ends")
        while left:
            if segment >= len(segments) or segments[segment].dtype != tensor.dtype:
                raise invalid("layout", f"tensor {shown(tensor.name)} runs out of the segments of its dtype")
            part = min(left, segments[segment].length - offset)
            left, offset = left - part, offset + part
            if offset == segments[segment].length:
                segment, offset = segment + 1, 0
    if (segment, offset) != (len(segments), 0):
        raise invalid("layout", f"no tensor fills the model's segment {segment} from byte {offset} on")


def _check_aliases(aliases: Mapping[str, str], names: set[str]) -> None:
    if len(aliases) > MAX_TENSORS:
        raise invalid("layout", f"{len(aliases)} aliases, {MAX_TENSORS} are allowed")
    for alias, name in aliases.items():
        if not is_tensor_name(alias) or alias in names:
            raise invalid("layout", f"the alias {shown(alias)} is no name or is a tensor's")
        if not isinstance(name, str) or name not in names:
            raise invalid("layout", f"the alias {shown(alias)} stands for {shown(name)}, which is no tensor")


def _read_aliases(fields: Fields, names: set[str]) -> dict[str, str]:
    aliases = fields.object("aliases").fields
    _check_aliases(aliases, names)
    return aliases


def _read_recipe(fields: Fields, segments: Sequence[SegmentEntry]) -> FileRecipe:
    size = fields.integer("size")
    flat = fields.list("spans", 3 * MAX_SPANS)
    if len(flat) % 3 or not all(type(each) is int for each in flat):
        raise fields.wrong("spans", "integers by threes are needed: segment, offset, length")
    spans = tuple(map(Span, flat[0::3], flat[1::3], flat[2::3]))
    total = 0
    for segment, offset, length in spans:
        inside = 0 <= segment < len(segments) and offset >= 0 and length > 0
        if not inside or offset + length > segments[segment].length:
            raise invalid(
                "layout", f"{fields.path}spans: {length} bytes at {offset} are not in segment {segment}"
            )
        total += length
    if total != size:
        raise invalid("layout", f"{fields.path}spans are {total} bytes, the file has {size}")
    return FileRecipe(size, spans)
