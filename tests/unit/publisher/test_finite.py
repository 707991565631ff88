"""Infinities and NaNs are found in every float dtype, and nothing else is taken for one."""

from __future__ import annotations

import pytest
import torch

from syncd.publisher.finite import all_finite

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
    assert all_finite(raw(numbers), dtype)
    numbers[299_998] = bad
    assert not all_finite(raw(numbers), dtype)


def test_the_largest_finite_numbers_are_finite() -> None:
    for dtype, kind in FLOATS.items():
        largest = torch.tensor([torch.finfo(kind).max, torch.finfo(kind).min], dtype=torch.float64).to(kind)
        assert all_finite(raw(largest), dtype), dtype


def test_integers_and_opaque_bytes_are_never_called_bad() -> None:
    assert all_finite(b"\xff" * 64, "I64")
    assert all_finite(b"\xff" * 64, None)
    assert all_finite(b"", "F32")
