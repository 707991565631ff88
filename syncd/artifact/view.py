"""The model view as a file: model.safetensors, packed in segment order, readable by any safetensors reader.

What plain readers do not know (permutations, dtypes beyond the common ones, tied names) stands in `__metadata__`
under `syncd.…` as JSON; normative: FORMATS.md, "model.safetensors".
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from syncd.artifact.fields import MAX_INTEGER, MAX_NAME_BYTES, Fields, invalid, is_text, read_json, shown
from syncd.artifact.layout import MAX_DIMS, Layout, TensorEntry
from syncd.dtypes import ITEM_BYTES, tensor_bytes
from syncd.errors import DocumentInvalid

MAX_HEADER_BYTES: Final = 100_000_000
"""What safetensors' own reader accepts."""
ALIGNMENT: Final = 64
METADATA: Final = "__metadata__"
PERMUTATIONS: Final = "syncd.permutations"
DTYPES: Final = "syncd.dtypes"
ALIASES: Final = "syncd.aliases"

FILE_DTYPES: Final[dict[str, tuple[str, int]]] = {
    "C32": ("F16", 2),
    "C64": ("F32", 2),
    "C128": ("F64", 2),
    "F8_E4M3FNUZ": ("U8", 1),
    "F8_E5M2FNUZ": ("U8", 1),
    "F8_E8M0": ("U8", 1),
}
"""Dtypes that not every reader knows → what the file calls them, and the size of the dimension added at the end."""

NO_METADATA: Final[Mapping[str, str]] = MappingProxyType({})

_LENGTH: Final = struct.Struct("<Q")


def model_file_header(layout: Layout, metadata: Mapping[str, str] = NO_METADATA) -> bytes:
    """The first bytes of model.safetensors: length, JSON, spaces up to a multiple of 64; the segments follow.

    Args:
        layout: the version's; its model view is written after the header in segment order.
        metadata: further `__metadata__`; names that begin with `syncd.` and are used here are overwritten.
    Raises: DocumentInvalid if the header passes 100 MB.
    """
    header: dict[str, Any] = {METADATA: {"format": "pt", **metadata, **_own_metadata(layout)}}
    for tensor in layout.tensors:
        dtype, last = FILE_DTYPES.get(tensor.dtype, (tensor.dtype, 1))
        start = layout.tensor_place(tensor) if tensor.nbytes else 0
        header[tensor.name] = {
            "dtype": dtype,
            "shape": [*tensor.storage_shape, last] if last > 1 else list(tensor.storage_shape),
            "data_offsets": [start, start + tensor.nbytes],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-(_LENGTH.size + len(text)) % ALIGNMENT)
    if len(text) > MAX_HEADER_BYTES:
        raise invalid("layout", f"model.safetensors would need a header of {len(text)} bytes")
    return _LENGTH.pack(len(text)) + text


def segment_place(layout: Layout, segment: int, header_length: int = 0) -> int:
    """Where one of the model's segments lies in model.safetensors, whose header has `header_length` bytes in all."""
    if not 0 <= segment < layout.model_segments:
        raise ValueError(f"segment {segment} is none of the model's {layout.model_segments}")
    return header_length + layout.model_starts[segment]


def _own_metadata(layout: Layout) -> dict[str, str]:
    own = {
        PERMUTATIONS: {
            each.name: list(each.permutation) for each in layout.tensors if each.permutation is not None
        },
        DTYPES: {each.name: each.dtype for each in layout.tensors if each.dtype in FILE_DTYPES},
        ALIASES: dict(layout.aliases),
    }
    return {
        key: json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        for key, value in own.items()
        if value
    }


@dataclass(frozen=True, slots=True)
class FileTensor:
    """A tensor in model.safetensors: its real dtype and shape, and where its bytes lie, in storage order.

    `start` counts from the beginning of the file. With a permutation the bytes are row-major under the storage shape
    `shape[permutation[0]], shape[permutation[1]], …`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    permutation: tuple[int, ...] | None
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class ModelFile:
    """What the header of a model.safetensors says."""

    tensors: tuple[FileTensor, ...]
    aliases: Mapping[str, str]
    metadata: Mapping[str, str]
    data_start: int
    size: int


def model_header_length(first: bytes) -> int:
    """The bytes of the whole header, from the first 8 of the file."""
    if len(first) < _LENGTH.size or _LENGTH.unpack_from(first)[0] > MAX_HEADER_BYTES:
        raise invalid("model.safetensors", f"it begins with {first[:8]!r}")
    return _LENGTH.size + int(_LENGTH.unpack_from(first)[0])


def parse_model_file(header: bytes) -> ModelFile:
    """Read a header as `model_file_header` writes it, all of it (`model_header_length` bytes).

    Raises: DocumentInvalid if tensors overlap, leave gaps, do not fit their dtypes, or the metadata is broken.
    """
    name = "model.safetensors"
    if model_header_length(header) != len(header):
        raise invalid(name, f"its header of {len(header)} bytes is cut off")
    fields = Fields(name, read_json(name, header[_LENGTH.size :], MAX_HEADER_BYTES))
    metadata = fields.object(METADATA).fields if fields.has(METADATA) else {}
    if not all(isinstance(value, str) for value in metadata.values()):
        raise fields.wrong(METADATA, "texts are needed")
    permutations, dtypes, aliases = (_own(metadata, key) for key in (PERMUTATIONS, DTYPES, ALIASES))
    names = [each for each in fields.fields if each != METADATA]
    tensors = [_read_tensor(fields, each, dtypes, permutations, len(header)) for each in names]
    tensors.sort(key=lambda each: (each.start, each.length))
    at = len(header)
    for tensor in tensors:
        if tensor.start != at and tensor.length:
            raise invalid(
                name, f"{shown(tensor.name)} begins at {tensor.start}, the one before it ends at {at}"
            )
        at += tensor.length
    known = set(names)
    for alias, target in aliases.items():
        if not isinstance(target, str) or target not in known or alias in known:
            raise invalid(name, f"the alias {shown(alias)} stands for {shown(target)}")
    return ModelFile(tuple(tensors), aliases, metadata, len(header), at)


def _own(metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    if key not in metadata:
        return {}
    return Fields(
        "model.safetensors", read_json(key, metadata[key].encode("utf-8", "replace"), MAX_HEADER_BYTES)
    ).fields


def _read_tensor(
    fields: Fields, name: str, dtypes: Mapping[str, Any], permutations: Mapping[str, Any], base: int
) -> FileTensor:
    if not name or not is_text(name, MAX_NAME_BYTES):
        raise invalid(
            "model.safetensors", f"the name {shown(name)} is not 1 to {MAX_NAME_BYTES} bytes of plain text"
        )
    entry = fields.object(name)
    stored = entry.text("dtype", 32)
    dtype = dtypes.get(name, stored)
    if (
        not isinstance(dtype, str)
        or dtype not in ITEM_BYTES
        or FILE_DTYPES.get(dtype, (dtype, 1))[0] != stored
    ):
        raise entry.wrong("dtype", f"it does not fit {shown(dtype)}")
    shape = _integers(entry, "shape", MAX_DIMS + 1)
    last = FILE_DTYPES.get(dtype, (dtype, 1))[1]
    if last > 1 and shape[-1:] != [last]:
        raise entry.wrong("shape", f"a last dimension of {last} is needed for {dtype}")
    shape = shape[:-1] if last > 1 else shape
    permutation = permutations.get(name)
    if permutation is not None:
        if not isinstance(permutation, list) or not _is_permutation(permutation, len(shape)):
            raise entry.wrong("shape", f"the permutation {shown(permutation)} does not fit")
        shape = [shape[permutation.index(dim)] for dim in range(len(shape))]
    offsets = _integers(entry, "data_offsets", 2)
    if len(offsets) != 2 or offsets[1] - offsets[0] != tensor_bytes(dtype, shape):
        raise entry.wrong("data_offsets", f"{tensor_bytes(dtype, shape)} bytes are needed")
    order = tuple(permutation) if permutation is not None else None
    return FileTensor(name, dtype, tuple(shape), order, base + offsets[0], offsets[1] - offsets[0])


def _is_permutation(listed: Sequence[Any], dims: int) -> bool:
    return all(type(dim) is int for dim in listed) and sorted(listed) == list(range(dims))


def _integers(fields: Fields, name: str, limit: int) -> list[int]:
    listed = fields.list(name, limit)
    if not all(type(each) is int and 0 <= each <= MAX_INTEGER for each in listed):
        raise fields.wrong(name, "integers from 0 on are needed")
    return listed


def check_model_file(layout: Layout, header: bytes) -> None:
    """Refuse a header whose tensors are not the layout's: names, dtypes, shapes, permutations and places."""
    found = {each.name: each for each in parse_model_file(header).tensors}
    if len(found) != len(layout.tensors):
        raise _differs(f"it has {len(found)} tensors, the layout has {len(layout.tensors)}")
    for tensor in layout.tensors:
        if found.get(tensor.name) != _as_file_tensor(layout, tensor, len(header)):
            raise _differs(f"tensor {shown(tensor.name)} is not the layout's")


def _as_file_tensor(layout: Layout, tensor: TensorEntry, base: int) -> FileTensor:
    start = base + (layout.tensor_place(tensor) if tensor.nbytes else 0)
    return FileTensor(tensor.name, tensor.dtype, tensor.shape, tensor.permutation, start, tensor.nbytes)


def _differs(what: str) -> DocumentInvalid:
    return invalid("model.safetensors", what)
