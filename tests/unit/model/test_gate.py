"""The gate: what passes, what does not, and which reason it gives."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from syncd.errors import GateRefused
from syncd.model.architecture import Skeleton
from syncd.model.gate import pass_gate, relative_difference
from syncd.model.golden import Golden
from syncd.model.load import LoadedModel, load
from syncd.model.weights import WeightsFile
from tests.support.versions import golden_of, write_weights

INPUTS = [torch.linspace(-1, 1, 12).reshape(3, 4)]


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))


def loaded(tmp_path: Path, tensors: dict[str, torch.Tensor], make: Any = net) -> LoadedModel:
    path = tmp_path / "model.safetensors"
    write_weights(path, tensors)
    with WeightsFile(path) as file:
        return load(Skeleton(make), file)


def stage_of(refused: pytest.ExceptionInfo[GateRefused]) -> str:
    stage = str(refused.value.where["stage"])
    assert refused.value.what.startswith(f"{stage}: ")
    return stage


def test_the_right_weights_pass_and_the_first_call_is_timed(tmp_path: Path) -> None:
    trained = net().eval()
    assert pass_gate(loaded(tmp_path, trained.state_dict()), golden=golden_of(trained, INPUTS)) > 0.0
    assert pass_gate(loaded(tmp_path, trained.state_dict()), warm_up=INPUTS) > 0.0
    assert pass_gate(loaded(tmp_path, trained.state_dict())) == 0.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_parameter_that_is_not_finite_is_refused_by_name(tmp_path: Path, bad: float) -> None:
    state = net().state_dict()
    state["2.weight"][0, 3] = bad
    with pytest.raises(GateRefused, match=r"1 of 16 values of 2\.weight are not finite") as refused:
        pass_gate(loaded(tmp_path, state))
    assert stage_of(refused) == "finite"


def test_a_buffer_may_hold_infinities_and_no_nan(tmp_path: Path) -> None:
    def masked() -> nn.Module:
        module = net()
        module.register_buffer("mask", torch.zeros(3))
        return module

    state = masked().state_dict()
    state["mask"][1] = float("-inf")
    pass_gate(loaded(tmp_path, state, masked))
    state["mask"][1] = float("nan")
    with pytest.raises(GateRefused, match="values of mask"):
        pass_gate(loaded(tmp_path, state, masked))


def test_other_weights_than_the_golden_samples_are_refused_with_the_difference(tmp_path: Path) -> None:
    trained = net().eval()
    golden = golden_of(trained, INPUTS)
    with torch.no_grad():
        trained[2].weight += 0.5
    with pytest.raises(GateRefused, match=r"output 0 differs by \S+, more than 0\.001") as refused:
        pass_gate(loaded(tmp_path, trained.state_dict()), golden=golden)
    assert stage_of(refused) == "golden"


@pytest.mark.parametrize(
    "outputs",
    [(), (torch.zeros(3, 3),), (torch.zeros(3, 2), torch.zeros(3, 2)), (torch.full((3, 2), float("nan")),)],
    ids=["none", "shape", "too many", "NaN"],
)
def test_a_golden_sample_of_other_outputs_refuses(tmp_path: Path, outputs: tuple[torch.Tensor, ...]) -> None:
    trained = net().eval()
    golden = Golden(tuple(INPUTS), outputs, {"same": 1e-3, "other": 1e-2}, {})
    version = loaded(tmp_path, trained.state_dict())
    if not outputs:  # inputs alone warm up
        assert pass_gate(version, golden=golden) > 0.0
        return
    with pytest.raises(GateRefused) as refused:
        pass_gate(version, golden=golden)
    assert stage_of(refused) == "golden"


def test_a_forward_that_raises_is_refused_with_its_words(tmp_path: Path) -> None:
    version = loaded(tmp_path, net().state_dict())
    with pytest.raises(GateRefused, match="forward raised RuntimeError: mat1 and mat2") as refused:
        pass_gate(version, warm_up=[torch.zeros(3, 5)])
    assert stage_of(refused) == "warm-up"


def test_answers_that_are_not_finite_are_refused_without_a_golden_sample_too(tmp_path: Path) -> None:
    state = net().state_dict()
    state["2.weight"].fill_(3e38)
    with pytest.raises(GateRefused, match="an output is not finite"):
        pass_gate(loaded(tmp_path, state), warm_up=[torch.ones(3, 4) * 100])


def test_a_first_call_that_takes_too_long_is_refused_with_both_times(tmp_path: Path) -> None:
    class Slow(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            began = time.monotonic()
            while time.monotonic() - began < 0.05:
                images = images + 0
            return images

    version = loaded(tmp_path, {}, Slow)
    with pytest.raises(GateRefused, match=r"the first call took 0\.\d+ s, more than 0\.01 s") as refused:
        pass_gate(version, warm_up=INPUTS, within_s=0.01)
    assert stage_of(refused) == "warm-up"


def test_the_difference_is_relative_to_the_largest_expected_value() -> None:
    assert relative_difference(torch.tensor([99.0, 1.0]), torch.tensor([100.0, 1.0])) == pytest.approx(0.01)
    assert relative_difference(torch.zeros(2), torch.zeros(2)) == 0.0
    assert relative_difference(torch.ones(2), torch.zeros(2)) == float("inf")
    assert relative_difference(torch.ones(2) * 1e-5, torch.zeros(2), atol=1e-4) == 0.0
    assert not relative_difference(torch.tensor([float("nan")]), torch.ones(1)) <= 1.0
