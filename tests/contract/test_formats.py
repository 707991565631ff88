"""The contract of formats, for each kind that is read; the files are written by torch and safetensors themselves."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file

from syncd.checkpoint.read import open_checkpoint
from tests.contract.format_contract import FormatContract


def raw(tensor: torch.Tensor) -> bytes:
    """Row-major bytes of a tensor's values."""
    dense = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return dense.view(torch.uint8).numpy().tobytes()


def model() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    tied = torch.randn(50, 40)
    return {
        "embedding": tied,
        "head": tied,
        "conv": torch.randn(8, 3, 5, 5).to(memory_format=torch.channels_last),
        "view": torch.randn(20, 60)[:, 3:40:2],
        "half": torch.randn(999).to(torch.bfloat16),
        "count": torch.tensor(7),
        "large": torch.randn(200, 100),
    }


class TestTorchZip(FormatContract):
    kind = "torch-zip"
    has_checksum = True

    def write(self, folder: Path) -> tuple[Path, dict[str, bytes]]:
        path, tensors = folder / "model.pt", model()
        torch.save(
            {"model": tensors, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}, "epoch": 3}, path
        )
        return path, {name: raw(tensor) for name, tensor in tensors.items()}

    def boundaries(self, path: Path) -> Iterable[int]:
        data = path.read_bytes()
        for magic in (b"PK\3\4", b"PK\1\2", b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\7\x08"):
            start = data.find(magic)
            while start >= 0:
                yield start
                start = data.find(magic, start + 1)

    def first_data_byte(self, path: Path) -> int:
        with open_checkpoint(path) as checkpoint:
            return min(tensor.storage[1] for tensor in checkpoint.tensors)


class TestTorchLegacy(TestTorchZip):
    kind = "torch-legacy"
    has_checksum = False

    def write(self, folder: Path) -> tuple[Path, dict[str, bytes]]:
        path, tensors = folder / "model.pt", model()
        state = {"state_dict": tensors, "epoch": 3}
        torch.save(state, path, _use_new_zipfile_serialization=False)
        return path, {name: raw(tensor) for name, tensor in tensors.items()}

    def boundaries(self, path: Path) -> Iterable[int]:
        with open_checkpoint(path) as checkpoint:
            for record in checkpoint.tensors:
                yield record.storage[1]
                yield record.storage[1] - 8
                if sum(record.storage[1:]) < checkpoint.size:
                    yield sum(record.storage[1:])


class TestSafetensors(FormatContract):
    kind = "safetensors"
    has_checksum = False

    def write(self, folder: Path) -> tuple[Path, dict[str, bytes]]:
        path = folder / "model.safetensors"
        tensors = {name: tensor.contiguous() for name, tensor in model().items() if name != "head"}
        save_file(tensors, path, metadata={"format": "pt"})
        return path, {name: raw(tensor) for name, tensor in tensors.items()}

    def boundaries(self, path: Path) -> Iterable[int]:
        yield 0
        yield 8
        with open_checkpoint(path) as checkpoint:
            yield from (record.offset for record in checkpoint.tensors)

    def first_data_byte(self, path: Path) -> int:
        with open_checkpoint(path) as checkpoint:
            return min(record.offset for record in checkpoint.tensors)
