"""The demo's training script: a user's plain PyTorch loop that knows nothing of syncd.

    python -m syncd.demo.train FOLDER --epochs 4 [--resume CHECKPOINT]

Trains a torchvision model on scikit-learn's digits and saves its full state after every epoch, in place,
with torch.save. Prints one JSON line per epoch with the loss of every step, as exact hexadecimal floats.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torchvision

from syncd.demo.digits import load_digits

BATCH = 32


def train(folder: Path, epochs: int, resume: Path | None, images: int) -> None:
    """Train until `epochs` are done, from the start or from `resume`; bit-exact either way on one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(7)
    model = torchvision.models.resnet18(num_classes=10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    done = 0
    if resume:
        state = torch.load(resume, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        done = state["epoch"]
    data = load_digits()
    for epoch in range(done + 1, epochs + 1):
        losses = _epoch(model, optimizer, data.train_images[:images], data.train_labels[:images])
        target = folder / f"epoch-{epoch}.pt"
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
        torch.save({**state, "rng": torch.get_rng_state()}, target)
        line = {"epoch": epoch, "checkpoint": str(target), "losses": [loss.hex() for loss in losses]}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


def _epoch(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor
) -> list[float]:
    model.train()
    losses = []
    order = torch.randperm(len(images))
    for start in range(0, len(order) - BATCH + 1, BATCH):
        batch = order[start : start + BATCH]
        loss: Any = torch.nn.functional.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description="the demo's training script")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--images", type=int, default=384)
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    train(chosen.folder, chosen.epochs, chosen.resume, chosen.images)


if __name__ == "__main__":
    main()
