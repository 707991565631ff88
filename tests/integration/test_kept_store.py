"""The store that format 1 wrote stays readable: pulled, restored and verified from a copy of the kept files."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from syncd.config import StoreSection
from syncd.edge.pull import pull
from syncd.edge.restore import restore
from syncd.store.open import open_store

KEPT = Path(__file__).parents[1] / "fixtures/store-1"
EXPECTED = json.loads((KEPT / "expected.json").read_text())
VERSIONS = [pytest.param(each, id=f"{each['model']}@{each['version']}") for each in EXPECTED["versions"]]


@pytest.fixture
def store(tmp_path):
    shutil.copytree(KEPT / "store", tmp_path / "store")
    return open_store(StoreSection(url=f"file://{tmp_path}/store"))


@pytest.fixture
def root():
    root = (KEPT / "store/fleet/1.root.json").read_bytes()
    assert hashlib.sha256(root).hexdigest() == EXPECTED["fingerprint"]
    return root


def read_view(path: Path) -> dict[str, torch.Tensor]:
    """A model view as the safetensors library reads it, permutations and aliases honoured as FORMATS.md says."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    for name, order in json.loads(metadata.get("syncd.permutations", "{}")).items():
        tensors[name] = tensors[name].permute([order.index(dim) for dim in range(len(order))])
    for alias, name in json.loads(metadata.get("syncd.aliases", "{}")).items():
        tensors[alias] = tensors[name]
    return tensors


@pytest.mark.parametrize("kept", VERSIONS)
async def test_every_tensor_of_a_kept_version_is_pulled_bit_for_bit(kept, store, root, tmp_path):
    pulled = await pull(
        store, root, kept["model"], version=kept["version"], to=tmp_path / "to", accept_expired=True
    )
    weights = read_view(tmp_path / "to/model.safetensors")
    assert pulled.version == kept["version"]
    for name, digest in kept["tensors"].items():
        tensor = weights[name].contiguous().flatten().view(torch.uint8)
        assert hashlib.sha256(tensor.numpy().tobytes()).hexdigest() == digest, name


@pytest.mark.parametrize("kept", VERSIONS)
async def test_the_file_of_a_kept_version_is_restored_byte_for_byte(kept, store, root, tmp_path):
    await restore(
        store, root, kept["model"], version=kept["version"], to=tmp_path / "to", accept_expired=True
    )
    restored = (tmp_path / "to" / kept["file"]).read_bytes()
    assert hashlib.sha256(restored).hexdigest() == kept["sha256"]


def test_the_kept_store_is_of_the_first_format():
    heads = list((KEPT / "store").rglob("head.json"))
    assert len(heads) == len(EXPECTED["versions"])
    assert {json.loads(head.read_bytes())["format"] for head in heads} == {"syncd.head/1"}
