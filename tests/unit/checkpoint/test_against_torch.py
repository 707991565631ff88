"""What torch reads from a file, we read from it too, bit for bit, and without torch."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from syncd.checkpoint.read import Checkpoint, open_checkpoint
from syncd.checkpoint.select import select_model
from syncd.errors import CheckpointIncomplete, CheckpointUnsupported
from tests.attacks.checkpoint import builders

FIXTURES = Path(__file__).parents[2] / "fixtures" / "checkpoints"
_OTHERS = (
    "deflated",
    "enum",
    "dtensor",
    "torchao",
    "subclass",
    "wholemodel-1",
)  # refused, or of classes not here
READ = sorted(
    path.relative_to(FIXTURES).as_posix()
    for folder in ("special", "deepspeed", "accelerate")
    for path in (FIXTURES / folder).iterdir()
    if path.suffix == ".pt" and path.stem not in _OTHERS
)


def raw(tensor: torch.Tensor) -> bytes:
    """Row-major bytes of a tensor's values."""
    dense = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    if not dense.numel():
        return b""
    return dense.view(torch.uint8).numpy().tobytes()


def load(path: Path) -> Any:
    """torch's own reading of a file that we wrote ourselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(path, weights_only=False, map_location="cpu")


def at(value: Any, key: tuple[Any, ...]) -> Any:
    """The part of an object that a key path means; None where the path goes through something opaque."""
    for part in key:
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list | tuple) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            return None
    return value


def compare(checkpoint: Checkpoint, loaded: Any) -> int:
    """How many tensors of the checkpoint were found in torch's object, all of them equal."""
    equal = 0
    for index, record in enumerate(checkpoint.tensors):
        if isinstance(loaded, torch.Tensor):
            loaded = [loaded]
        theirs = at(loaded, record.key)
        if record.readable and isinstance(theirs, torch.Tensor) and theirs.layout == torch.strided:
            assert tuple(theirs.shape) == record.shape, record.key
            assert checkpoint.read_tensor(index) == raw(theirs), record.key
            equal += 1
    return equal


@pytest.mark.parametrize("name", READ)
def test_a_file_of_a_real_library_is_read_bit_equal(name: str) -> None:
    with open_checkpoint(FIXTURES / name) as checkpoint:
        plain = [r for r in checkpoint.tensors if r.readable and "args" not in r.key]
        assert compare(checkpoint, load(FIXTURES / name)) == len(plain)


def test_a_pickled_module_has_the_tensors_of_its_state_dict() -> None:
    path = FIXTURES / "special" / "wholemodel-1.pt"
    theirs = load(path).state_dict()
    with open_checkpoint(path) as checkpoint:
        model = select_model(checkpoint)
        ours = {each.name: checkpoint.read_tensor(each.tensor) for each in model.tensors}
    assert ours == {name: raw(tensor) for name, tensor in theirs.items()}


def everything() -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    base = torch.randn(6, 8, 10)
    found = {
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 3),
        "one": torch.zeros(1),
        "slice": base[1:4, ::2],
        "transposed": base.transpose(0, 2),
        "expanded": torch.randn(1, 5).expand(4, 5),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "channels_last_3d": torch.randn(2, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d),
        "depthwise": torch.randn(7, 1, 3, 3).to(memory_format=torch.channels_last),
        "conj": torch.randn(4, dtype=torch.complex64).conj(),
        "conj_2d": torch.randn(4, 3, dtype=torch.complex128).t().conj(),
        "neg": torch.randn(4, dtype=torch.complex64).conj().imag,
        "nan": torch.tensor([float("nan"), -0.0, float("inf"), 1e-45]),
        "parameter": torch.nn.Parameter(torch.randn(3)),
    }
    for dtype in (
        torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64,
        torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.complex64, torch.complex128, torch.complex32,
        torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu,
    ):  # fmt: skip
        item = torch.empty(0, dtype=dtype).element_size()
        found[str(dtype)] = (torch.arange(12 * item) % 2).to(torch.uint8).view(dtype).reshape(3, 4)
    return found


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_kind_of_tensor_is_read_bit_equal(tmp_path: Path, legacy: bool, protocol: int) -> None:
    path, tensors = tmp_path / "all.pt", everything()
    torch.save(tensors, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    with open_checkpoint(path) as checkpoint:
        assert len(checkpoint.tensors) == len(tensors)
        assert compare(checkpoint, tensors) == len(tensors)
        assert checkpoint.notes == ()


def test_permutations_are_those_of_the_memory_format(tmp_path: Path) -> None:
    path = tmp_path / "all.pt"
    torch.save(everything(), path)
    with open_checkpoint(path) as checkpoint:
        found = {record.key[0]: (record.dense, record.permutation) for record in checkpoint.tensors}
    assert found["channels_last"] == (True, (0, 2, 3, 1))
    assert found["channels_last_3d"] == (True, (0, 2, 3, 4, 1))
    assert found["depthwise"] == (True, None)
    assert found["transposed"] == (True, (2, 1, 0))
    assert found["slice"] == (False, None)
    assert found["expanded"] == (False, None)
    assert found["conj"] == (False, None)
    assert found["empty"] == found["scalar"] == (True, None)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_tied_tensors_are_one_with_an_alias(tmp_path: Path, legacy: bool) -> None:
    weight = torch.randn(4, 4)
    path = tmp_path / "tied.pt"
    tensors = {"wte": weight, "h": torch.ones(2), "lm_head": weight, "again": weight[:]}
    torch.save(tensors, path, _use_new_zipfile_serialization=not legacy)
    with open_checkpoint(path) as checkpoint:
        model = select_model(checkpoint)
    assert [each.name for each in model.tensors] == ["wte", "h"]
    assert model.aliases == {"lm_head": "wte", "again": "wte"}


def test_without_checksums_and_with_another_alignment_it_is_read(tmp_path: Path) -> None:
    from torch.utils import serialization

    tensors = {"a": torch.randn(300), "b": torch.randn(7)}
    with serialization.config.patch({"save.storage_alignment": 4096}):
        torch.serialization.set_crc32_options(False)
        try:
            torch.save(tensors, tmp_path / "plain.pt")
        finally:
            torch.serialization.set_crc32_options(True)
    with open_checkpoint(tmp_path / "plain.pt") as checkpoint:
        assert compare(checkpoint, tensors) == 2
        assert all(record.offset % 4096 == 0 for record in checkpoint.tensors)
        assert "CRC32" not in checkpoint.proof


def test_scalars_and_globals_are_told(tmp_path: Path) -> None:
    import argparse

    path = tmp_path / "run.pt"
    model, options = {"w": torch.ones(2)}, argparse.Namespace(a=1)
    torch.save({"epoch": 3, "lr": 0.5, "arch": "resnet50", "args": options, "model": model}, path)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.scalars == {"epoch": 3, "lr": 0.5, "arch": "resnet50"}
        assert "argparse.Namespace" in checkpoint.globals


def test_a_table_of_16_000_tensors_is_read_in_about_a_second(tmp_path: Path) -> None:
    import resource

    path = tmp_path / "many.pt"
    torch.save({f"layer{index}.weight": torch.ones(4, 4) for index in range(16_000)}, path)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with open_checkpoint(path) as checkpoint:
        assert len(checkpoint.tensors) == 16_000
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{seconds:.2f} s of CPU for the table")
    assert seconds < 2.0  # 0.65 s on a quiet machine


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("special/deflated.pt", "compression"),
        ("special/gz.pt.gz", "gzip"),
        ("special/plainpickle.pkl", "bare pickle"),
        ("exported/ep.pt2", "torch.export"),
        ("exported/m.onnx", "ONNX"),
        ("exported/m.onnx.data", "ONNX"),
        ("exported/m.pte", "ExecuTorch"),
        ("exported/ts.pt", "TorchScript"),
        ("dcp/.metadata", "bare pickle"),
        ("keras/m-2.keras", "Keras"),
    ],
)
def test_another_kind_of_file_is_refused_by_its_name(name: str, text: str) -> None:
    with pytest.raises(CheckpointUnsupported, match=text):
        open_checkpoint(FIXTURES / name)


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ((".metadata", "__0_0.distcp"), "DCP"),
        (("config.json", "model.safetensors", "trainer_state.json"), "Hugging Face Trainer"),
        (("config.json", "model.safetensors"), "Hugging Face model"),
        (("adapter_config.json", "adapter_model.safetensors"), "PEFT"),
        (("model.safetensors.index.json", "model-00001-of-00002.safetensors"), "sharded"),
        (("latest", "global_step2"), "DeepSpeed"),
        (("_CHECKPOINT_METADATA", "default"), "orbax"),
        (("random_states_0.pkl", "model.safetensors"), "accelerate"),
        (("notes.txt",), "unknown"),
    ],
)
def test_a_folder_is_refused_by_its_name(members: tuple[str, ...], text: str, tmp_path: Path) -> None:
    for member in members:
        (tmp_path / member).touch()
    with pytest.raises(CheckpointUnsupported, match=text):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("head", "text"),
    [
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"GGUF\3\0\0\0", "GGUF"),
        (b"\x93NUMPY\1\0", "numpy"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"hello, this is no checkpoint", "unknown: it begins with 68 65 6c"),
    ],
)
def test_a_file_is_refused_by_what_it_begins_with(head: bytes, text: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(head.ljust(600, b"x"))
    with pytest.raises(CheckpointUnsupported, match=text):
        open_checkpoint(path)


def test_the_index_of_a_sharded_checkpoint_is_refused_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text('{"metadata": {}, "weight_map": {}}')
    with pytest.raises(CheckpointUnsupported, match="index of a sharded checkpoint"):
        open_checkpoint(path)


def test_tensors_of_the_other_byte_order_are_refused(tmp_path: Path) -> None:
    pickled = builders.state_dict(w=builders.tensor((1,), (1,)))
    with pytest.raises(CheckpointUnsupported, match="big-endian"):
        open_checkpoint(builders.torch_zip(tmp_path / "big.pt", pickled, order="big"))


@pytest.mark.parametrize("name", ["broken/dtype-int4.pt", "broken/lambda.pt"])
def test_a_save_that_raised_leaves_an_incomplete_file(name: str) -> None:
    with pytest.raises(CheckpointIncomplete, match=r"data\.pkl is missing"):
        open_checkpoint(FIXTURES / name)
