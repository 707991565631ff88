"""What a swap costs an application that never stops: latency against a control in the same run, and memory.

Ratios, printed with the machine. "While swapping" are the phases in which version after version takes over, one a
second; the control's phases lie between them, in the same process: the daemon's part is the same, but nothing swaps.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torchvision.models import resnet50

from syncd.node.links import ModelFolder
from tests.support.open_loop import Perceptron
from tests.support.small_daemon import activate, offer_and_wait, wait_for_version
from tests.support.versions import golden_of, install_version, make_model_folder

pytestmark = pytest.mark.bench

PHASES = 6
SWAPS_A_PHASE = 6
SWAP_EVERY_S = 1.0
SHARE = 0.25
MIB = 2**20


def machine() -> str:
    cores = len(os.sched_getaffinity(0))
    return f"{platform.machine()}, {cores} cores, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}"


def start(module: str, *words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", f"tests.support.{module}", *map(str, words)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def told(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    answer: dict[str, Any] = json.loads(process.stdout.readline())
    return answer


def swap_to(folder: ModelFolder, version: int) -> None:
    tally = offer_and_wait(folder, version, voters=1)
    assert len(tally.accepted) == 1, tally
    activate(folder, version)
    wait_for_version(folder, version, followers=1)


def p99_ms(rows: NDArray[np.float64]) -> float:
    return float(np.percentile((rows[:, 1] - rows[:, 0]) * 1000, 99))


@pytest.mark.timeout(600)
def test_the_p99_while_swapping_is_that_of_a_control_that_swaps_nothing(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "node", "bench")
    torch.manual_seed(2)
    torch.set_num_threads(1)
    images = torch.rand(1, 1024)
    expected = {"input": images}
    for version in (1, 2):
        module = Perceptron().eval()
        golden = golden_of(module, [images])
        expected[f"expected.{version}"] = golden.outputs[0]
        install_version(folder, version, module.state_dict(), golden=golden)
    save_file(expected, tmp_path / "answers")
    activate(folder, 1)
    windows: dict[str, list[tuple[float, float]]] = {"control": [], "swapping": []}
    serving = 1
    client = start(
        "open_loop", tmp_path / "node", "bench", tmp_path / "answers", SHARE, tmp_path / "rows.npy"
    )
    try:
        rate = told(client)["rate"]
        for phase in range(2 * PHASES):
            kind = "swapping" if phase % 2 else "control"
            began = time.monotonic()
            for step in range(SWAPS_A_PHASE):
                if kind == "swapping":
                    serving = 3 - serving
                swap_to(folder, serving)  # in the control to the version that serves: the same links, no swap
                time.sleep(max(0.0, began + (step + 1) * SWAP_EVERY_S - time.monotonic()))
            windows[kind].append((began, time.monotonic()))
        client.communicate(timeout=60)
    finally:
        client.kill()
        client.wait()
    rows = np.load(tmp_path / "rows.npy")
    parts = {
        kind: np.concatenate([rows[(rows[:, 0] >= a) & (rows[:, 0] < b)] for a, b in spans])
        for kind, spans in windows.items()
    }
    ratio = p99_ms(parts["swapping"]) / p99_ms(parts["control"])
    failed = int((rows[:, 2] == 0).sum())
    print(
        f"\nswap: p99 {p99_ms(parts['swapping']):.1f} ms while swapping ÷ {p99_ms(parts['control']):.1f} ms control"
        f" = {ratio:.2f}; {PHASES * SWAPS_A_PHASE} swaps, {len(parts['swapping'])} + {len(parts['control'])} calls,"
        f" {failed} failed; 16.8 MB of weights, {rate:g} calls a second; {machine()}"
    )
    assert failed == 0
    assert ratio <= 1.2


@pytest.mark.timeout(600)
def test_a_head_only_swap_costs_little_more_memory_than_the_head(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "node", "bench")
    torch.manual_seed(2)
    torch.set_num_threads(1)
    images = torch.rand(1, 3, 224, 224)
    named = {"name": "torchvision.models:resnet50", "args": {}}
    module = resnet50().eval()
    for version in (1, 2, 3, 4):
        torch.nn.init.normal_(module.fc.weight, std=0.02)
        install_version(
            folder, version, module.state_dict(), architecture=named, golden=golden_of(module, [images])
        )
    changed = module.fc.weight.nbytes
    save_file({"input": images}, tmp_path / "answers")
    activate(folder, 1)
    extras = []
    process = start("swap_memory", tmp_path / "node", "bench", tmp_path / "answers")
    try:
        told(process)
        assert process.stdin is not None
        for version in (2, 3, 4):
            process.stdin.write("measure\n")
            process.stdin.flush()
            told(process)
            swap_to(folder, version)
            extras.append(told(process)["extra"])
        process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    bound = 1.5 * changed + 20 * MIB
    print(
        f"\nswap memory: head-only, ResNet-50, changed {changed / MIB:.1f} MiB: extra"
        f" {', '.join(f'{extra / MIB:.1f}' for extra in extras)} MiB, bound {bound / MIB:.1f} MiB; {machine()}"
    )
    assert max(extras) <= bound
