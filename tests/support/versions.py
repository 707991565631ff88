"""Installing a version folder from a state dict exactly as the edge does, for tests that need no edge."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from syncd.model.golden import Golden, answer, default_tolerance, machine_kind, write_golden
from syncd.model.weights import TORCH_DTYPES
from syncd.node.links import DIGESTS_FILE, HEAD_FILE, MODEL_FILE, ModelFolder, NodeFolder

DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def tensor_payload(tensor: torch.Tensor) -> bytes:
    """The tensor's bytes, row-major."""
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def write_weights(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Write a safetensors file whose data begins on a multiple of 64; returns the tensors' digests by name.

    A dense but not contiguous tensor (channels_last) is stored in storage order, with `syncd.permutations`.
    """
    header: dict[str, Any] = {}
    permutations: dict[str, list[int]] = {}
    payloads: list[bytes] = []
    digests = {}
    position = 0
    for name, tensor in tensors.items():
        if not tensor.is_contiguous():
            order = sorted(range(tensor.dim()), key=lambda dim, t=tensor: (-t.stride(dim), dim))
            permutations[name] = order
            tensor = tensor.permute(order)
        payload = tensor_payload(tensor)
        end = position + len(payload)
        header[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        digests[name] = f"sha256:{hashlib.sha256(payload).hexdigest()}"
        payloads.append(payload)
        position = end
    metadata = dict(metadata or {})
    if permutations:
        metadata["syncd.permutations"] = json.dumps(permutations)
    text = json.dumps({"__metadata__": metadata, **header} if metadata else header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    path.write_bytes(b"".join((struct.pack("<Q", len(text)), text, *payloads)))
    return digests


def make_model_folder(node: Path, model: str) -> ModelFolder:
    """A node folder with the folders of one model, as a daemon makes them at its start."""
    folder = NodeFolder(node)
    folder.make()
    made = folder.model_folder(model)
    made.make()
    return made


def install_version(
    folder: ModelFolder,
    version: int,
    tensors: Mapping[str, torch.Tensor],
    *,
    architecture: Mapping[str, Any] | None = None,
    golden: Golden | None = None,
    aliases: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Put `versions/N` in place whole; `tensors` are those of the file: of tied names the first alone."""
    staged = folder.incoming / str(version)
    staged.mkdir(mode=0o755)
    digests = write_weights(staged / MODEL_FILE, tensors, {**(metadata or {}), **_aliases(aliases)})
    document = {"format": "syncd.tensors/1", "tensors": digests}
    (staged / DIGESTS_FILE).write_text(json.dumps(document, sort_keys=True, separators=(",", ":")))
    head: dict[str, Any] = {
        "format": "syncd.head/1",
        "requires": [],
        "model": folder.model,
        "version": version,
    }
    if architecture is not None:
        head["architecture"] = dict(architecture)
    if golden is not None:
        write_golden(staged / "golden.safetensors", golden)
        head["golden"] = {"file": "golden.safetensors", "rtol": 1e-3, "atol": 1e-4}
    (staged / HEAD_FILE).write_text(json.dumps(head, sort_keys=True, separators=(",", ":")))
    return folder.place_version(version, staged)


def golden_of(module: torch.nn.Module, inputs: Sequence[torch.Tensor]) -> Golden:
    """The golden sample that `module` gives for `inputs` on this machine."""
    outputs = tuple(answer(module, inputs))
    return Golden(tuple(inputs), outputs, default_tolerance(outputs, module), machine_kind())


def _aliases(aliases: Mapping[str, str] | None) -> dict[str, str]:
    return {"syncd.aliases": json.dumps(dict(aliases))} if aliases else {}
