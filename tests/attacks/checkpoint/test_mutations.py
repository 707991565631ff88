"""Honest files with bytes changed at random end in one of four outcomes, never in another exception."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from syncd.checkpoint.formats.registry import parse_file
from syncd.checkpoint.source import Source
from syncd.checkpoint.storages import Storages
from syncd.checkpoint.unpickle import Unpickler
from syncd.checkpoint.values import Hostile, Incomplete, Malformed, Unsupported
from syncd.checkpoint.walk import Tables, fill
from tests.attacks.checkpoint import builders

ROUNDS = 1500


def mutations(raw: bytes, seed: int) -> Iterator[bytes]:
    """Copies of `raw` with a few bytes changed, a part cut out, doubled, or zeroed."""
    random_ = random.Random(seed)
    for _ in range(ROUNDS):
        changed = bytearray(raw)
        for _ in range(random_.choice((1, 1, 1, 2, 5))):
            at, length = random_.randrange(len(changed)), random_.randrange(1, 20)
            kind = random_.randrange(5)
            if kind < 2:
                changed[at] = random_.randrange(256)
            elif kind == 2:
                del changed[at : at + length]
            elif kind == 3:
                changed[at:at] = changed[at : at + length]
            else:
                changed[at : at + length] = bytes(len(changed[at : at + length]))
            if not changed:
                break
        yield bytes(changed)


def write_zip(path: Path) -> None:
    torch.save({"model": {"w": torch.ones(3, 4), "b": torch.ones(2).expand(5, 2)}, "epoch": 3}, path)


def write_legacy(path: Path) -> None:
    torch.save({"w": torch.ones(3, 4), "epoch": 3}, path, _use_new_zipfile_serialization=False)


def write_safetensors(path: Path) -> None:
    save_file({"w": torch.ones(3, 4), "b": torch.ones(2)}, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "write", [write_zip, write_legacy, write_safetensors], ids=lambda write: write.__name__
)
def test_a_damaged_file_has_an_outcome(write: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    write(path)
    raw, outcomes = path.read_bytes(), dict.fromkeys(("read", "Incomplete", "Hostile", "Unsupported"), 0)
    for changed in mutations(raw, 1):
        with path.open("wb") as file:
            file.write(changed)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            parse_file(Source(descriptor, len(changed), path.name))
            outcomes["read"] += 1
        except (Incomplete, Hostile, Unsupported) as error:
            outcomes[type(error).__name__] += 1
        finally:
            os.close(descriptor)
    print(outcomes)
    assert outcomes["Incomplete"] > ROUNDS // 10


def pickled() -> bytes:
    """A data.pkl with most of what torch writes: tensors, scalars, an ordered dictionary, a module, lists."""
    module = b"ctorch.nn.modules.linear\nLinear\n)\x81}(" + builders.text("_parameters") + b"}"
    module += (
        builders.text("w")
        + builders.tensor((2,), (1,), elements=8)
        + b"s"
        + builders.text("_modules")
        + b"}ub"
    )
    return builders.state_dict(
        w=builders.tensor((2, 3), (3, 1), elements=8),
        ordered=builders.ORDERED + b")R(" + builders.text("k") + b"K\x01u",
        module=module,
        values=b"](K\x01G?\xf0\0\0\0\0\0\0N\x88\x8a\x01\x05U\x01xe",
        nested=b"(K\x01K\x02t\x85",
    )


def test_a_damaged_pickle_has_an_outcome() -> None:
    read = 0
    for seed in range(3):
        for changed in mutations(pickled(), seed):
            storages = Storages()
            try:
                value = Unpickler(changed, 0, storages.load, 100_000).load()
                for storage in storages.by_key.values():
                    storage.first = 64
                fill(Tables("torch-zip"), value)
                read += 1
            except (Incomplete, Malformed, Hostile):
                continue
    assert read > 100
