"""Golden samples, made by the program that publishers run."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision import models

from syncd.errors import ArchitectureRefused, DocumentInvalid, Failed, SyncdError, UsageError
from syncd.model.golden import flatten_outputs, make_golden, read_golden
from syncd.model.weights import WeightsFile
from tests.support.versions import write_weights

SPEC: dict[str, Any] = {
    "architecture": {"name": "torchvision.models:squeezenet1_1", "args": {"num_classes": 3}},
    "shape": [2, 3, 64, 64],
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    torch.manual_seed(5)
    write_weights(path, models.squeezenet1_1(num_classes=3).state_dict())
    return path


def run_golden(weights: Path, out: Path, spec: Any) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "syncd.model.golden", "--weights", str(weights), "--out", str(out)]
    text = spec if isinstance(spec, str) else json.dumps(spec)
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=120, check=False)
    answer: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, answer


def test_the_sample_holds_what_the_weights_answer(weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "golden.safetensors"
    status, answer = run_golden(weights, out, SPEC)
    assert status == 0, answer
    assert answer["finite"] is True
    assert answer["kept_outputs"] is False
    assert answer["bytes"] == out.stat().st_size
    assert answer["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    module = models.squeezenet1_1(num_classes=3).eval()
    module.load_state_dict(load_file(weights))
    golden = read_golden(out)
    assert golden.inputs[0].shape == (2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(golden.outputs[0], module(golden.inputs[0]), 1e-4, 1e-4)
    assert golden.tolerance_on("cpu") == 1e-3
    assert golden.tolerance_on("cuda") == 2e-2
    assert load_file(out).keys() == {"input.0", "output.0"}


def test_outputs_that_were_given_are_kept_and_bad_weights_still_make_a_sample(
    weights: Path, tmp_path: Path
) -> None:
    given = {"input": torch.rand(1, 3, 64, 64), "output": torch.tensor([[1.0, float("nan"), 3.0]])}
    save_file(given, tmp_path / "given.safetensors")
    out = tmp_path / "golden.safetensors"
    spec = {"architecture": SPEC["architecture"], "file": str(tmp_path / "given.safetensors")}
    status, answer = run_golden(weights, out, spec)
    assert (status, answer["finite"], answer["kept_outputs"]) == (0, False, True)
    golden = read_golden(out)
    assert torch.equal(golden.inputs[0], given["input"])
    assert torch.equal(golden.outputs[0].nan_to_num(), given["output"].nan_to_num())


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"shape": None}, UsageError, "needs shape or file"),
        ({"file": "/nowhere"}, UsageError, "not both"),
        ({"shape": None, "file": "/nowhere"}, UsageError, "golden file /nowhere: No such file"),
        ({"shape": [0]}, UsageError, "is not a list of sizes"),
        ({"shape": [2**20, 2**20]}, UsageError, "are larger than"),
        ({"architecture": None}, UsageError, "no architecture"),
        ({"shape": [2, 3, 1, 1]}, Failed, "fails on golden inputs of shape (2, 3, 1, 1): RuntimeError"),
        ({"architecture": {"name": "torchvision.models:no_such"}}, ArchitectureRefused, "does not exist"),
        (
            {"architecture": {"name": "torchvision.models:squeezenet1_1"}},
            ArchitectureRefused,
            "size mismatch",
        ),
        ({"allowed": ["torchvision.models:resnet*"]}, ArchitectureRefused, "is not allowed here"),
    ],
)
def test_what_cannot_be_made_is_told_with_its_values(
    weights: Path, change: dict[str, Any], error: type[SyncdError], text: str
) -> None:
    with WeightsFile(weights) as file, pytest.raises(error) as refused:
        make_golden({**SPEC, **change}, file)
    assert text in refused.value.what


@pytest.mark.parametrize(
    ("spec", "status", "code", "text"),
    [
        ({**SPEC, "seconds": 0.001}, 1, "failed", "no golden sample within 0.001 s"),
        ({**SPEC, "memory": 1}, 1, "failed", "no golden sample"),
        ({**SPEC, "shape": None}, 2, "usage", "needs shape or file"),
        ("[" * 100_000, 2, "usage", "standard input is no SPEC"),
    ],
    ids=["out of time", "out of memory", "a wrong SPEC", "no SPEC"],
)
def test_a_failure_has_its_error_and_status_and_leaves_no_file(
    weights: Path, tmp_path: Path, spec: Any, status: int, code: str, text: str
) -> None:
    got, answer = run_golden(weights, tmp_path / "golden.safetensors", spec)
    assert got == status, answer
    assert answer["error"]["code"] == code
    assert text in answer["error"]["what"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("tensors", "facts"),
    [
        ({"input.0": torch.zeros(1), "other": torch.zeros(1)}, "{}"),
        ({"input.0": torch.zeros(1), "input.2": torch.zeros(1)}, "{}"),
        ({"input.0": torch.zeros(1)}, '{"format":"syncd.golden/2"}'),
        ({"input.0": torch.zeros(1)}, '{"tolerance":{"same":-1,"other":1}}'),
        ({"input.0": torch.zeros(1)}, '{"tolerance":{"same":1}}'),
        ({"input.0": torch.zeros(1)}, "[]"),
        ({"input.0": torch.zeros(1)}, "no json"),
    ],
)
def test_a_file_that_is_no_golden_sample_is_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor], facts: str
) -> None:
    path = tmp_path / "golden.safetensors"
    save_file(tensors, path, {"syncd.golden": facts})
    with pytest.raises(DocumentInvalid, match="is not a golden sample"):
        read_golden(path)


def test_outputs_are_flattened_in_order() -> None:
    a, b, c = (torch.tensor(float(i)) for i in range(3))
    assert flatten_outputs({"out": a, "aux": (b, [c, None])}) == [a, b, c]
    assert flatten_outputs(a) == [a]
    assert flatten_outputs("text") == []
