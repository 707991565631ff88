"""model.safetensors: readable by the safetensors library, and exact for whoever knows syncd's metadata."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors
from safetensors.numpy import load
from safetensors.torch import load as load_torch

from syncd.artifact.layout import Layout, TensorSource
from syncd.artifact.view import (
    check_model_file,
    model_file_header,
    model_header_length,
    parse_model_file,
    segment_place,
)
from syncd.dtypes import ITEM_BYTES, tensor_bytes
from syncd.errors import DocumentInvalid
from tests.support.documents import Stored, small, store


def model_file(stored: Stored) -> bytes:
    header = model_file_header(stored.layout, {"syncd.version": "42"})
    data = bytearray(header) + bytearray(stored.layout.model_bytes)
    for number in range(stored.layout.model_segments):
        place = segment_place(stored.layout, number, len(header))
        data[place : place + stored.layout.segments[number].length] = stored.segments[number]
    return bytes(data)


def every_dtype() -> Stored:
    """One tensor of every dtype, a scalar, an empty one, and a permuted one."""
    tensors, own = [], {}
    shapes: list[tuple[str, tuple[int, ...]]] = [(dtype, (3, 2)) for dtype in ITEM_BYTES]
    for dtype, shape in [*shapes, ("F32", ()), ("F16", (4, 0, 2**40))]:
        tensors.append(TensorSource(f"{dtype} {shape}", dtype, shape))
    tensors.append(TensorSource("permuted", "F32", (2, 3, 4, 5), (0, 2, 3, 1)))
    for number, each in enumerate(tensors):
        own[number] = (
            np.random.default_rng(number).integers(0, 2, tensor_bytes(each.dtype, each.shape), "u1").tobytes()
        )
    return store(tensors, [], own, {"tied": "permuted"})


def test_the_safetensors_library_reads_every_dtype() -> None:
    stored = every_dtype()
    data = model_file(stored)
    found = load_torch(data)
    assert set(found) == {each.name for each in stored.layout.tensors}
    assert found["C64 (3, 2)"].shape == (3, 2, 2)
    assert found["F16 (4, 0, 1099511627776)"].numel() == 0
    assert found["permuted"].shape == (2, 4, 5, 3)


def test_the_data_begins_on_a_multiple_of_64_and_every_tensor_on_one_of_its_elements() -> None:
    stored = every_dtype()
    parsed = parse_model_file(model_file_header(stored.layout))
    assert parsed.data_start % 64 == 0
    assert all(each.start % min(ITEM_BYTES[each.dtype], 8) == 0 for each in parsed.tensors)


def test_names_dtypes_shapes_permutations_aliases_and_bytes_are_exact_for_syncd() -> None:
    stored = every_dtype()
    data = model_file(stored)
    parsed = parse_model_file(data[: model_header_length(data)])
    assert parsed.size == len(data)
    assert parsed.aliases == {"tied": "permuted"}
    assert parsed.metadata["syncd.version"] == "42"
    assert parsed.metadata["format"] == "pt"
    entries = {each.name: each for each in stored.layout.tensors}
    for each in parsed.tensors:
        entry = entries[each.name]
        assert (each.dtype, each.shape, each.permutation) == (entry.dtype, entry.shape, entry.permutation)
        spans = stored.layout.tensor_spans(entry)
        assert data[each.start :][: each.length] == b"".join(
            stored.segments[span.segment][span.offset :][: span.length] for span in spans
        )


def test_a_file_is_checked_against_its_layout() -> None:
    stored = small()
    header = model_file_header(stored.layout)
    check_model_file(stored.layout, header)
    other = store([TensorSource("x", "F32", (1,))], [], {0: bytes(4)})
    with pytest.raises(DocumentInvalid, match="tensors"):
        check_model_file(other.layout, header)


def test_a_model_without_tensors_has_a_file_all_the_same(tmp_path: Path) -> None:
    layout = Layout((), {}, (), 0, ())
    path = tmp_path / "model.safetensors"
    path.write_bytes(model_file_header(layout))
    with safetensors.safe_open(path, "np") as file:
        assert file.keys() == []
    assert load(path.read_bytes()) == {}


@pytest.mark.parametrize(
    "change",
    [
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}},
        {
            "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            "b": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
        },
        {"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}},
        {"a": []},
        {"__metadata__": {"x": 1}},
        {"__metadata__": {"syncd.aliases": "{"}},
        {"__metadata__": {"syncd.aliases": '{"a":"b"}'}},
        {
            "__metadata__": {"syncd.dtypes": '{"a":"C64"}'},
            "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        },
        {
            "__metadata__": {"syncd.permutations": '{"a":[1]}'},
            "a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
        },
    ],
)
def test_a_header_that_does_not_add_up_is_refused(change: dict[str, object]) -> None:
    text = json.dumps(change).encode()
    with pytest.raises(DocumentInvalid):
        parse_model_file(len(text).to_bytes(8, "little") + text)
    with pytest.raises(DocumentInvalid, match="begins with"):
        model_header_length(b"\xff" * 8)
