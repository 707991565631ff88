"""Whether tensors are finite: a sum settles nearly all cases, by numpy where a tensor lies in main memory."""

from __future__ import annotations

import math

import numpy as np
import torch

_FLOAT8 = 1


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether no element is NaN or infinite; true for what has no such values. Cost: one pass, no memory as a rule."""
    if not (tensor.is_floating_point() or tensor.is_complex()) or not tensor.numel():
        return True
    if (
        tensor.device.type == "cpu"
        and tensor.dtype in (torch.float32, torch.float64)
        and not tensor.requires_grad
    ):
        array = tensor.numpy()
        with np.errstate(all="ignore"):
            # A sum may overflow where no element does: then look at each.
            return math.isfinite(float(np.add.reduce(array, axis=None))) or bool(np.isfinite(array).all())
    if tensor.dtype.itemsize == _FLOAT8:  # knows few operations
        tensor = tensor.to(torch.float32)
    return bool(torch.isfinite(tensor).all())


def count_nonfinite(tensor: torch.Tensor) -> int:
    """How many elements are NaN or infinite; slow, for messages."""
    if tensor.dtype.itemsize == _FLOAT8:
        tensor = tensor.to(torch.float32)
    return int((~torch.isfinite(tensor)).sum())


def has_nan(tensor: torch.Tensor) -> bool:
    """Whether an element is NaN; infinities do not count."""
    if tensor.dtype.itemsize == _FLOAT8:
        tensor = tensor.to(torch.float32)
    return bool(torch.isnan(tensor).any())
