"""safetensors: eight bytes of header length, a JSON header, then tensors that cover the rest without gap or overlap."""

from __future__ import annotations

import json
from typing import Any, Final

from syncd.checkpoint.source import Source
from syncd.checkpoint.values import Hostile, Incomplete, Storage, Tensor
from syncd.checkpoint.walk import MAX_NAME_BYTES, MAX_SCALARS, Tables
from syncd.dtypes import ITEM_BYTES

KIND: Final = "safetensors"
MAX_HEADER_BYTES: Final = 100_000_000
_PACKED_BITS: Final = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}


def recognise(head: bytes, name: str) -> bool:
    # Blanks may stand before the brace in files of other writers, never in the first of safetensors' own.
    return head[8:9] == b"{" or (name.endswith(".safetensors") and head[:1] != b"<")


def parse(source: Source) -> Tables:
    """Tables of a whole file; there is no checksum, so only sizes prove it.

    Raises:
        Incomplete: the file is shorter than its header says, or the header is not written yet.
        Hostile: the header is huge, ambiguous or deep, or its tensors overlap, leave gaps or have another size.
    """
    header, start = _header(source)
    tables = Tables(KIND)
    entries = []
    for name, value in header.items():
        if name == "__metadata__":
            _metadata(tables, value)
        else:
            entries.append((name, *_entry(name, value)))
    _check_cover(entries, source.size - start)
    names, indices = [], []
    for name, dtype, shape, first, length in entries:
        if len(name) > MAX_NAME_BYTES or not name.isprintable():
            continue
        storage = Storage(name, 1, length)
        storage.first = start + first
        kind = "strided" if dtype in ITEM_BYTES else "unknown-dtype"
        tensor = Tensor(storage, dtype, 0, shape, _row_major(shape), kind)
        tables.charge(name)
        names.append(name)
        indices.append(tables.add_tensor((name,), tensor, 1))
    tables.note_unnamed(len(entries) - len(names))
    if names:
        tables.groups.append([(), names, indices, False, True])
    tables.proof = f"the header's {len(entries)} tensors cover the file exactly (the format has no checksum)"
    return tables


def _header(source: Source) -> tuple[dict[str, Any], int]:
    if source.size < 8:
        raise Incomplete(f"{source.size} bytes are too few for a safetensors header")
    length = int.from_bytes(source.read(0, 8), "little")
    if length > MAX_HEADER_BYTES:
        raise Hostile(f"a safetensors header of {length} bytes, more than {MAX_HEADER_BYTES}")
    raw = source.read(8, length)
    if b"\0" in raw or not length:
        raise Incomplete("the safetensors header is not written yet")
    try:
        header = json.loads(raw, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Hostile(f"the safetensors header is not plain JSON: {type(error).__name__}") from None
    if not isinstance(header, dict):
        raise Hostile("the safetensors header is not a JSON object")
    return header, 8 + length


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise Hostile("the safetensors header has a key twice: readers would disagree on it")
    return made


def _no_constant(text: str) -> Any:
    raise ValueError(text)


def _metadata(tables: Tables, value: Any) -> None:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise Hostile("the safetensors metadata is not a table of strings")
    for key, text in list(value.items())[:MAX_SCALARS]:
        if len(key) <= 64 and len(text) <= 256 and key.isprintable() and text.isprintable():
            tables.scalars[key] = text


def _entry(name: str, value: Any) -> tuple[str, tuple[int, ...], int, int]:
    """(dtype, shape, first byte, bytes) of one tensor, its size proven."""
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise Hostile(f"tensor {name[:100]!r} is not dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or len(dtype) > 32 or not dtype.isascii():
        raise Hostile(f"tensor {name[:100]!r} has no dtype")
    if not _naturals(shape) or len(shape) > 64 or not _naturals(offsets) or len(offsets) != 2:
        raise Hostile(f"tensor {name[:100]!r} has a shape or offsets that are not small whole numbers")
    count = 1
    for size in shape:
        count *= size
        if count >= 1 << 62:
            raise Hostile(f"tensor {name[:100]!r} has a shape that overflows")
    length = offsets[1] - offsets[0]
    bits = 8 * ITEM_BYTES[dtype] if dtype in ITEM_BYTES else _PACKED_BITS.get(dtype)
    if length < 0 or (bits is not None and length * 8 != count * bits):
        raise Hostile(f"tensor {name[:100]!r} of dtype {dtype} and {count} elements has {length} bytes")
    return dtype, tuple(shape), offsets[0], length


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 1 << 62 for size in value)


def _check_cover(entries: list[tuple[str, str, tuple[int, ...], int, int]], available: int) -> None:
    """The tensors, sorted by place, must cover the data part without overlap, gap or rest."""
    end = 0
    for name, _, _, first, length in sorted(entries, key=lambda entry: (entry[3], entry[4])):
        if first != end:
            what = "overlaps another" if first < end else "leaves a gap before it"
            raise Hostile(f"tensor {name[:100]!r} {what}")
        end = first + length
    if end > available:
        raise Incomplete(f"the tensors need {end} bytes, the file has {available}")
    if end < available:
        raise Hostile(f"{available - end} bytes lie behind the last tensor")


def _row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides = [1] * len(shape)
    for dim in range(len(shape) - 2, -1, -1):
        strides[dim] = strides[dim + 1] * max(shape[dim + 1], 1)
    return tuple(strides)
