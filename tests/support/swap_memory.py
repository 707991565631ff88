"""What one swap costs in memory: `python -m tests.support.swap_memory NODE MODEL ANSWERS`.

Prints one line when it serves; then, for each line "measure" on standard input, the next swap's extra memory in bytes:
the peak of resident memory between that line and the swap, less what was resident before.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from syncd.predictor import open_predictor


def resident(name: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


def main() -> None:
    """Serve, measure swaps."""
    node, model, answers_path = sys.argv[1:4]
    torch.set_num_threads(1)
    images = load_file(answers_path)["input"]
    predictor = open_predictor(model, node=Path(node), wait="60s")
    for _ in range(5):
        predictor(images)
    print(json.dumps({"serves": predictor.version}), flush=True)
    for _ in sys.stdin:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before, version = resident("VmRSS"), predictor.version
        print(json.dumps({"ready": version}), flush=True)
        while predictor.version == version:
            time.sleep(0.01)
        predictor(images)
        print(json.dumps({"extra": resident("VmHWM") - before}), flush=True)
    predictor.close()


if __name__ == "__main__":
    main()
