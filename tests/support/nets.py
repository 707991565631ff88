"""Small modules that a server's tests publish by name: `tests.support.nets:*`."""

from __future__ import annotations

import time

import torch
from torch import nn


class Line(nn.Module):
    """(N, width) → (N, classes)."""

    def __init__(self, width: int = 4, classes: int = 3, dtype: str = "float32") -> None:
        super().__init__()
        self.layer = nn.Linear(width, classes, dtype=getattr(torch, dtype))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.layer(values)
        return answer


class Pair(nn.Module):
    """(N, 2) whole numbers and (N,) truths → their sum as they are, and scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, numbers: torch.Tensor, truths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        total = numbers.sum(dim=1) + truths.long()
        return total, total * self.scale


class Slow(Line):
    """As Line, but a first value of 1000 or more sleeps for that many milliseconds, and a negative one raises."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        first = float(values.reshape(-1)[0])
        if first < -1000:
            raise RuntimeError("first value is below -1000")
        if first >= 1000:
            time.sleep(first / 1000)
            values = torch.zeros_like(values)
        return super().forward(values)
