"""The weights reader: every honest file as torch saved it, every dishonest header refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from syncd.artifact.cut import TensorSource
from syncd.artifact.layout import cut
from syncd.artifact.view import model_file_header
from syncd.errors import DocumentInvalid
from syncd.model.finite import all_finite
from syncd.model.weights import TORCH_DTYPES, WeightsFile
from tests.support.versions import tensor_payload, write_weights

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "odd": torch.randint(0, 255, (7,), generator=generator).to(torch.uint8),
        "flags": torch.tensor([True, False, True]),
        "count": torch.tensor(7),
        "half": torch.randn(3, 5, generator=generator).half(),
        "brain": torch.randn(5, 3, generator=generator).bfloat16(),
        "fp8": torch.randn(9, generator=generator).to(torch.float8_e4m3fn),
        "weight": torch.randn(300, 70, generator=generator),
        "double": torch.randn(2, 2, generator=generator).double(),
    }


def equal(got: torch.Tensor, expected: torch.Tensor) -> bool:
    return (
        got.dtype == expected.dtype
        and got.shape == expected.shape
        and tensor_payload(got) == tensor_payload(expected)
    )


def test_tensors_of_safetensors_own_writer_are_read_as_its_reader_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(some_tensors(), path)
    expected = load_file(path)
    with WeightsFile(path) as file:
        got = file.read()
    assert got.keys() == expected.keys()
    assert all(equal(got[name], expected[name]) for name in expected)


def test_every_tensor_begins_on_a_multiple_of_64(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_weights(path, some_tensors())
    with WeightsFile(path) as file:
        assert {tensor.data_ptr() % 64 for tensor in file.read().values() if tensor.numel()} == {0}


def test_a_part_of_the_file_is_read_alone(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors = some_tensors()
    write_weights(path, tensors)
    with WeightsFile(path) as file:
        got = file.read(["double", "odd"])
    assert sorted(got) == ["double", "odd"]
    assert all(equal(got[name], tensors[name]) for name in got)


def test_a_permuted_tensor_comes_back_in_its_own_order_and_strides(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors = {
        "channels_last": torch.randn(4, 3, 5, 6).to(memory_format=torch.channels_last),
        "transposed": torch.randn(3, 8).t(),
        "plain": torch.randn(2, 2),
    }
    write_weights(path, tensors)
    with WeightsFile(path) as file:
        got = file.read()
    for name, expected in tensors.items():
        assert torch.equal(got[name], expected)
        assert got[name].stride() == expected.stride()


def test_what_the_artifact_room_writes_is_read_with_rare_dtypes_and_permutations(tmp_path: Path) -> None:
    tensors: dict[str, tuple[str, torch.Tensor, tuple[int, ...] | None]] = {
        "complex": ("C64", torch.randn(3, 2, dtype=torch.complex64), None),
        "complex128": ("C128", torch.randn(3, dtype=torch.complex128), None),
        "fnuz": ("F8_E4M3FNUZ", torch.randn(8).to(torch.float8_e4m3fnuz), None),
        "permuted": ("F32", torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last), (0, 2, 3, 1)),
    }
    sources = [
        TensorSource(name, dtype, tuple(tensor.shape), order, True, None)
        for name, (dtype, tensor, order) in tensors.items()
    ]
    layout, _ = cut(sources, [], {})
    stored = {
        name: tensor_payload(tensor if order is None else tensor.permute(order))
        for name, (_, tensor, order) in tensors.items()
    }
    data = bytearray(layout.model_bytes)
    for tensor in layout.tensors:
        place = layout.tensor_place(tensor)
        data[place : place + tensor.nbytes] = stored[tensor.name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(model_file_header(layout, {}) + data)
    with WeightsFile(path) as file:
        got = file.read()
    for name, (dtype, tensor, _) in tensors.items():
        assert got[name].dtype == TORCH_DTYPES[dtype]
        assert equal(got[name], tensor)


def file_of(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype: Any = "F32", shape: Any = (2,), start: Any = 0, end: Any = 8) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


HOSTILE: dict[str, tuple[Any, bytes]] = {
    "no JSON": (b"not json", b""),
    "a list": ([], b""),
    "nested": (b'{"a":' * 20_000, b""),
    "unknown dtype": ({"a": entry(dtype="F3")}, bytes(8)),
    "dtype is a list": ({"a": entry(dtype=["F32"])}, bytes(8)),
    "negative size": ({"a": entry(shape=(-2,))}, bytes(8)),
    "huge shape": ({"a": entry(shape=(2**40, 2**40))}, bytes(8)),
    "shape with a fraction": ({"a": entry(shape=(2.0,))}, bytes(8)),
    "wrong size": ({"a": entry(shape=(3,))}, bytes(8)),
    "backwards": ({"a": entry(start=8, end=0)}, bytes(8)),
    "beyond the end": ({"a": entry(shape=(4,), end=16)}, bytes(8)),
    "a gap": ({"a": entry(), "b": entry(start=16, end=24)}, bytes(24)),
    "an overlap": ({"a": entry(), "b": entry(start=4, end=12)}, bytes(12)),
    "bytes left over": ({"a": entry()}, bytes(9)),
    "no offsets": ({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)),
    "broken permutation": ({"__metadata__": {"syncd.permutations": '{"a":[1]}'}, "a": entry()}, bytes(8)),
    "permutations are a list": ({"__metadata__": {"syncd.permutations": "[]"}, "a": entry()}, bytes(8)),
    "broken dtypes": ({"__metadata__": {"syncd.dtypes": '{"a":"C128"}'}, "a": entry()}, bytes(8)),
}


@pytest.mark.parametrize("abuse", HOSTILE)
def test_a_header_against_the_format_is_refused(tmp_path: Path, abuse: str) -> None:
    header, data = HOSTILE[abuse]
    path = file_of(tmp_path / "model.safetensors", header, data)
    with pytest.raises(DocumentInvalid, match=r"model\.safetensors"):
        WeightsFile(path)


@pytest.mark.parametrize("length", [0, 1, 2**62, 2**64 - 1])
def test_a_header_length_that_the_file_cannot_hold_is_refused(tmp_path: Path, length: int) -> None:
    path = file_of(tmp_path / "model.safetensors", {"a": entry()}, bytes(8), length=length)
    with pytest.raises(DocumentInvalid, match=f"a header of {length} bytes in a file of"):
        WeightsFile(path)


def test_a_link_and_a_pipe_are_refused(tmp_path: Path) -> None:
    real = file_of(tmp_path / "real", {"a": entry()}, bytes(8))
    (tmp_path / "link").symlink_to(real)
    with pytest.raises(OSError, match="symbolic links"):
        WeightsFile(tmp_path / "link")
    with pytest.raises(DocumentInvalid, match="not a regular file"):
        WeightsFile("/dev/null")


def test_a_file_that_is_cut_off_after_it_was_opened_is_told(tmp_path: Path) -> None:
    path = file_of(tmp_path / "model.safetensors", {"a": entry()}, bytes(8))
    with WeightsFile(path) as file:
        with path.open("r+b") as cutting:
            cutting.truncate(20)
        with pytest.raises(DocumentInvalid, match="before its data does"):
            file.read()


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float8_e5m2, torch.complex64], ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_one_bad_value_is_found_in_every_dtype(dtype: torch.dtype, bad: float) -> None:
    tensor = torch.ones(1000)
    assert all_finite(tensor.to(dtype))
    tensor[777] = bad
    assert not all_finite(tensor.to(dtype))


def test_large_values_whose_sum_overflows_are_finite() -> None:
    assert all_finite(torch.full((10,), 3e38))
    assert all_finite(torch.full((1000,), 6e4, dtype=torch.float16))
    assert all_finite(torch.arange(3))
    assert all_finite(torch.zeros(0))
