"""scikit-learn's digits as images for torchvision models: the data of the demo's two scripts."""

from __future__ import annotations

from dataclasses import dataclass

import torch

SIDE = 32


@dataclass(frozen=True)
class Digits:
    """Images (N, 3, 32, 32) float32 in 0..1 and labels (N,) int64; 1,437 to train on, 360 to test with."""

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor


def load_digits() -> Digits:
    """Load and enlarge the 8 x 8 digits; always in the same order."""
    import sklearn.datasets

    data = sklearn.datasets.load_digits()
    small = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16.0
    images = torch.nn.functional.interpolate(small, size=(SIDE, SIDE), mode="bilinear").expand(-1, 3, -1, -1)
    images = images.contiguous()
    labels = torch.tensor(data.target, dtype=torch.int64)
    cut = len(images) * 4 // 5
    return Digits(images[:cut], labels[:cut], images[cut:], labels[cut:])
