"""How much memory a publisher needs: a checkpoint of 3 GB passes through a bounded number of buffers."""

from __future__ import annotations

import asyncio
import json
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from tests.support.signed_store import make_signed_store

pytestmark = [pytest.mark.bench, pytest.mark.timeout(900)]

LIMIT_BYTES = 200 * 2**20


def trained_like(path: Path, gigabytes: float, *, seed: int = 0) -> Path:
    """fp32 tensors as training leaves them: normally distributed, a scale each, moved by many small updates.

    The updates fill the mantissas to their last bits, as an optimizer does; products of drawn numbers would not.
    """
    rng = np.random.default_rng(seed)
    count = max(1, round(gigabytes * 2**30 / (4 * 2**22)))
    one = rng.standard_normal(2**22, dtype=np.float32)
    tensors = {}
    for number in range(count):
        first, second = (int(shift) for shift in rng.integers(1, 2**22, 2))
        scale = np.float32(0.01 * (1 + number % 7) * (1 + 1e-3 * number))
        weights = np.roll(one, first) * scale + np.roll(one, second) * (scale * np.float32(1e-3))
        tensors[f"layers.{number}.weight"] = weights.reshape(2048, 2048)
    save_file(tensors, path)
    return path


def published(tmp_path: Path, checkpoint: Path) -> dict[str, float]:
    """Publish in a child process that has published something small before, so that everything is imported."""
    signed = asyncio.run(make_signed_store(tmp_path / "fleet"))
    asyncio.run(signed.add_model("m"))
    (tmp_path / "root.json").write_bytes(signed.root)
    save_file({"w": np.ones((4, 4), np.float32)}, tmp_path / "small.safetensors")
    given = {
        "path": str(checkpoint),
        "warm": str(tmp_path / "small.safetensors"),
        "store": {"url": str(signed.folder)},
        "root": str(tmp_path / "root.json"),
        "keys": str(signed.keys),
        "state": str(tmp_path / "state"),
        "model": "m",
    }
    script = Path(__file__).with_name("publish_once.py")
    done = subprocess.run(
        [sys.executable, script, json.dumps(given)], check=True, capture_output=True, timeout=600
    )
    told: dict[str, float] = json.loads(done.stdout)
    return told


def test_a_checkpoint_of_3_gb_takes_less_than_200_mib_above_idle(tmp_path: Path) -> None:
    checkpoint = trained_like(tmp_path / "large.safetensors", 3.0)
    told = published(tmp_path, checkpoint)
    above = told["peak_bytes"] - told["idle_bytes"]
    print(
        f"\n3 GB safetensors into a folder: {above / 2**20:.0f} MiB above idle ({told['idle_bytes'] / 2**20:.0f} MiB), "
        f"{told['seconds']:.1f} s, {told['cpu_s']:.1f} s CPU; {told['result']}; "
        f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}"
    )
    assert above < LIMIT_BYTES
