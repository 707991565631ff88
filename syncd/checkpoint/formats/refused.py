"""Kinds of checkpoint that are known and not read yet: each refused by its name, so that nobody has to guess."""

from __future__ import annotations

import os
from typing import Final

_FILES: Final[tuple[tuple[int, bytes, str], ...]] = (
    (0, b"\x89HDF\r\n\x1a\n", "HDF5 (Keras weights .h5)"),
    (0, b"\x1f\x8b", "gzip: decompress it first"),
    (0, b"\x28\xb5\x2f\xfd", "zstd: decompress it first"),
    (0, b"BZh", "bzip2: decompress it first"),
    (0, b"\xfd7zXZ\0", "xz: decompress it first"),
    (4, b"ET12", "an ExecuTorch program (.pte)"),
    (0, b"GGUF", "GGUF"),
    (0, b"\x93NUMPY", "a numpy array (.npy)"),
    (0, b"version https://git-lfs", "a Git LFS pointer: fetch the file first"),
    (257, b"ustar", "a tar archive (torch's format before 0.1.10, or a packed folder)"),
)
_SUFFIXES: Final[dict[str, str]] = {
    ".onnx": "ONNX",
    ".data": "external data of an ONNX file",
    ".pte": "an ExecuTorch program (.pte)",
    ".keras": "a Keras file (.keras)",
    ".h5": "HDF5 (Keras weights .h5)",
    ".distcp": "a piece of a distributed checkpoint (DCP): the folder is the checkpoint",
    ".msgpack": "a Flax checkpoint (msgpack)",
    ".engine": "a TensorRT engine",
    ".tflite": "TensorFlow Lite",
    ".pb": "TensorFlow",
}


def name_file(head: bytes, name: str) -> str:
    """What the file is, as far as anyone can tell."""
    for offset, magic, kind in _FILES:
        if head[offset : offset + len(magic)] == magic:
            return kind
    lower = name.lower()
    if lower.endswith(".safetensors.index.json"):
        return "the index of a sharded checkpoint: the folder is the checkpoint"
    suffix = os.path.splitext(lower)[1]  # noqa: PTH122 - a name, not a path
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    if head[:1] == b"\x80" and head[1:2] and 2 <= head[1] <= 5:
        return "a bare pickle: save it with torch.save"
    if head[:1] in (b"\x08", b"\x0a") and b"pytorch" in head[:64]:
        return "ONNX"
    return f"unknown: it begins with {head[:8].hex(' ')}"


def name_folder(names: set[str]) -> str:
    """What a folder with these entries is, as far as anyone can tell."""
    for marker, kind in (
        (".metadata", "a distributed checkpoint folder (torch DCP)"),
        ("_CHECKPOINT_METADATA", "an orbax checkpoint folder"),
        ("trainer_state.json", "a Hugging Face Trainer checkpoint folder"),
        ("adapter_config.json", "a PEFT adapter folder"),
        ("model.safetensors.index.json", "a sharded checkpoint folder"),
        ("pytorch_model.bin.index.json", "a sharded checkpoint folder"),
        ("config.json", "a Hugging Face model folder"),
        ("saved_model.pb", "a TensorFlow SavedModel folder"),
    ):
        if marker in names:
            return kind
    if any(name.startswith(("mp_rank_", "zero_pp_rank_", "bf16_zero_")) for name in names) or (
        "latest" in names and any(name.startswith("global_step") for name in names)
    ):
        return "a DeepSpeed checkpoint folder"
    if any(name.startswith("random_states_") for name in names):
        return "an accelerate checkpoint folder"
    if any(name.endswith(".distcp") for name in names):
        return "a distributed checkpoint folder (torch DCP), its .metadata still missing"
    return "a folder of unknown kind"
