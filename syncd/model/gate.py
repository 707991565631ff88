"""The gate: what a version must pass in a predictor's process before it may serve, each refusal with its reason.

In order: structure (the tensors fit the architecture) · finite · golden sample within its tolerance · warm-up in time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final, Literal

import torch

from syncd.errors import GateRefused
from syncd.model.finite import all_finite, count_nonfinite, has_nan
from syncd.model.golden import Golden, answer
from syncd.model.load import LoadedModel

Stage = Literal["structure", "finite", "golden", "warm-up"]
STAGES: Final[tuple[Stage, ...]] = ("structure", "finite", "golden", "warm-up")
DEFAULT_WITHIN_S: Final = 60.0

_SAFE: Final = "the version that serves goes on serving"


def refusal(stage: Stage, reason: str) -> GateRefused:
    """The error of a refusal; its text begins with the stage, so that a vote's reason tells it too."""
    return GateRefused(f"{stage}: {reason}", do=_SAFE, stage=stage)


def pass_gate(
    loaded: LoadedModel,
    *,
    golden: Golden | None = None,
    warm_up: Sequence[torch.Tensor] | None = None,
    within_s: float = DEFAULT_WITHIN_S,
    device: torch.device | str = "cpu",
) -> float:
    """Let a loaded version through, or say why not; structure was settled by loading it.

    Args:
        golden: its inputs are the warm-up too: one call on the real path.
        warm_up: inputs like those of the application's calls, for a version without a golden sample.
        within_s: wall seconds that the first call may take.
    Returns: the seconds of that first call, 0.0 where there was nothing to call with.
    Raises:
        GateRefused: `where` names the stage.
    """
    _check_finite(loaded)
    inputs = golden.inputs if golden is not None else warm_up
    if not inputs:
        return 0.0
    started = time.monotonic()
    try:
        outputs = answer(loaded.module, [each.to(device) for each in inputs])
    except Exception as error:
        stage: Stage = "golden" if golden is not None else "warm-up"
        raise refusal(stage, f"forward raised {type(error).__name__}: {error}") from error
    if golden is not None and golden.outputs:
        _compare(outputs, golden, device)
    elif not all(all_finite(each) for each in outputs):
        raise refusal("warm-up", "an output is not finite")
    took = time.monotonic() - started
    if took > within_s:
        raise refusal("warm-up", f"the first call took {took:.2f} s, more than {within_s:g} s")
    return took


def _check_finite(loaded: LoadedModel) -> None:
    """Parameters must be finite; a buffer may hold infinities (attention masks do), but no NaN.

    Tensors shared with the serving version passed with it.
    """
    for name, tensor in loaded.suspects.items():
        if name in loaded.parameters or has_nan(tensor):
            bad = count_nonfinite(tensor)
            raise refusal("finite", f"{bad} of {tensor.numel()} values of {name} are not finite")


def _compare(outputs: Sequence[torch.Tensor], golden: Golden, device: torch.device | str) -> None:
    if len(outputs) != len(golden.outputs):
        raise refusal("golden", f"{len(outputs)} outputs instead of {len(golden.outputs)}")
    tolerance = golden.tolerance_on(device)
    for position, (got, expected) in enumerate(zip(outputs, golden.outputs, strict=True)):
        got = got.detach().cpu()
        if got.shape != expected.shape:
            raise refusal(
                "golden", f"output {position} has shape {tuple(got.shape)}, not {tuple(expected.shape)}"
            )
        difference = relative_difference(got, expected, golden.atol)
        if not difference <= tolerance:
            raise refusal("golden", f"output {position} differs by {difference:.3g}, more than {tolerance:g}")


def relative_difference(got: torch.Tensor, expected: torch.Tensor, atol: float = 0.0) -> float:
    """The largest difference beyond `atol`, relative to the largest absolute value of `expected`; NaN is never near."""
    if not expected.numel():
        return 0.0
    kind = torch.complex128 if expected.is_complex() or got.is_complex() else torch.float64
    got, expected = got.to(kind), expected.to(kind)
    largest = (got - expected).abs().max().item()
    if largest <= atol:
        return 0.0
    largest -= atol
    scale = expected.abs().max().item()
    return largest / scale if scale > 0.0 else float("inf")
