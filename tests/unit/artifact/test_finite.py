"""Infinities and NaNs are found in every float dtype, and nothing else is taken for one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from syncd.artifact.finite import count_nonfinite

FLOATS = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "C128": torch.complex128,
}


def raw(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().view(torch.uint8).numpy())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_one_bad_element_far_inside_is_found(dtype: str, bad: float) -> None:
    numbers = torch.randn(300_000).to(FLOATS[dtype])
    assert count_nonfinite(raw(numbers), dtype) == 0
    numbers[299_998] = bad
    assert count_nonfinite(raw(numbers), dtype) > 0


def test_the_largest_finite_numbers_are_finite() -> None:
    for dtype, kind in FLOATS.items():
        largest = torch.tensor([torch.finfo(kind).max, torch.finfo(kind).min], dtype=torch.float64).to(kind)
        assert count_nonfinite(raw(largest), dtype) == 0, dtype


def test_integers_and_opaque_bytes_are_never_called_bad() -> None:
    assert count_nonfinite(b"\xff" * 64, "I64") == 0
    assert count_nonfinite(b"\xff" * 64, None) == 0
    assert count_nonfinite(b"", "F32") == 0


@pytest.mark.parametrize("dtype", ["F32", "F64"])
def test_a_mask_of_zeros_and_minus_infinity_is_as_good_as_finite_and_nothing_like_it_is(dtype):
    kind = {"F32": np.float32, "F64": np.float64}[dtype]
    mask = np.triu(np.full((7, 7), -np.inf, kind), 1)
    assert count_nonfinite(mask.tobytes(), dtype) == 0
    assert count_nonfinite((mask + 1).tobytes(), dtype) == 21
    assert count_nonfinite((-mask).tobytes(), dtype) > 0
    assert count_nonfinite(np.full(3, np.nan, kind).tobytes(), dtype) == 3


@pytest.mark.parametrize(("dtype", "kind"), [("F16", np.float16), ("F32", np.float32), ("F64", np.float64)])
def test_numbers_that_are_not_finite_are_counted_and_the_largest_finite_is_not(dtype, kind):
    values = np.array([0, -0.0, np.inf, -np.inf, np.nan, np.finfo(kind).max, np.finfo(kind).tiny], kind)
    assert count_nonfinite(values.tobytes(), dtype) == 3


def test_bfloat16_is_looked_at_and_integers_are_not():
    bits = np.array([0x3F80, 0x7F80, 0xFF80, 0x7FC1, 0x7F7F], "<u2")
    assert count_nonfinite(bits.tobytes(), "BF16") == 3
    assert count_nonfinite(np.full(4, -1, np.int64).tobytes(), "I64") == 0
