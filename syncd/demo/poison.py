"""A bad day in training: a checkpoint whose weights are not numbers, written beside the good ones.

python -m syncd.demo.poison GOOD_CHECKPOINT
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch


def poison(good: Path) -> None:
    """Write `poisoned.pt` beside `good`: the same state with one weight of every tensor replaced by NaN."""
    state = torch.load(good, weights_only=True)
    for tensor in state["model"].values():
        if tensor.is_floating_point() and tensor.numel():
            tensor.view(-1)[0] = float("nan")
    torch.save(state, good.with_name("poisoned.pt"))


if __name__ == "__main__":
    poison(Path(sys.argv[1]))
