"""Golden samples: inputs and the outputs that a version must give for them, made by a child process of the publisher.

    python -m syncd.model.golden --weights FILE --out FILE < SPEC

`--weights` is a file like model.safetensors (safetensors, `syncd.permutations` honoured). `--out` is written whole or
not at all (mode 0644, the caller puts it where it belongs). SPEC is one JSON object on standard input:

    architecture  {"name": "torchvision.models:resnet50", "args": {"num_classes": 10}}
    aliases       {"tied name": "its name in the file", …}          may be missing
    shape         [2, 3, 224, 224]: one input, drawn from `seed` (0) as a normal distribution
    file          "/path/golden.safetensors": in place of shape; its inputs, and its outputs where it has them (they are
                  kept: what the model must answer); tensors named input.0, input.1, … (or input) and output.0, …
    tolerance     {"same": 1e-4, "other": 2e-2}                     may be missing: see `default_tolerance`
    allowed       ["torchvision.models:*", …]                       may be missing: the named architecture is allowed
    seconds       wall time after which it gives up (120)
    memory        bytes of its own memory (4 GiB + 4 × the weights)

On success it exits 0 and prints {"inputs", "outputs", "bytes", "sha256", "finite", "kept_outputs", "seconds"}; outputs
that are not finite are written as they are and told by `"finite": false`: every gate will refuse the version. On
failure it prints {"error": {"code", "what", "where", "why", "do"}} and exits 1 (2: the SPEC or command line is wrong).
Standard error carries no part of the answer.

The file: tensors `input.0` … and `output.0` … (a tuple's or list's tensors in order, a dict's in the order of its
keys), metadata `syncd.golden` = {"format":"syncd.golden/1","tolerance":{"same":…,"other":…},"machine":{"arch":…,
"device":…,"torch":…}}. A tolerance is relative to the largest absolute value of an output: `same` where arch and device
equal the gate's, `other` elsewhere.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import re
import resource
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import torch
from torch import nn

from syncd.durable import replace_file
from syncd.errors import DocumentInvalid, Failed, SyncdError, UsageError
from syncd.model.architecture import build
from syncd.model.finite import all_finite
from syncd.model.load import LoadedModel, load
from syncd.model.weights import TORCH_DTYPES, WeightsFile

METADATA: Final = "syncd.golden"
FORMAT: Final = "syncd.golden/1"
MAX_GOLDEN_BYTES: Final = 256 * 2**20
MAX_SPEC_BYTES: Final = 64 * 2**20
DEFAULT_SECONDS: Final = 120.0

_NAMES = {str(dtype): name for name, dtype in TORCH_DTYPES.items()}
_LOW_PRECISION = (torch.float16, torch.bfloat16)
_NAME = re.compile(r"(input|output)(?:\.([0-9]{1,3}))?")


@dataclass(frozen=True)
class Golden:
    """A golden sample: inputs, the outputs they must give, and how near: `tolerance` × an output's largest value.

    `atol` is added to that; 0 but for a file that does not say its own tolerance.
    """

    inputs: tuple[torch.Tensor, ...]
    outputs: tuple[torch.Tensor, ...]
    tolerance: Mapping[str, float]
    machine: Mapping[str, str]
    atol: float = 0.0

    def tolerance_on(self, device: torch.device | str) -> float:
        """The tolerance for this machine and `device`: `same` kind as the maker's, or `other`."""
        here = machine_kind(device)
        same = all(self.machine.get(key) == here[key] for key in ("arch", "device"))
        return self.tolerance["same" if same else "other"]


def machine_kind(device: torch.device | str = "cpu") -> dict[str, str]:
    """What the last bits of an answer depend on, roughly: {"arch", "device", "torch"}."""
    return {"arch": platform.machine(), "device": torch.device(device).type, "torch": torch.__version__}


def default_tolerance(outputs: Sequence[torch.Tensor], module: nn.Module) -> dict[str, float]:
    """Wide enough for other alignments (`same`) or processors (`other`), narrow enough for other weights."""
    low = any(each.dtype in _LOW_PRECISION for each in (*outputs, *module.parameters()))
    return {"same": 2e-2, "other": 5e-2} if low else {"same": 1e-3, "other": 2e-2}


def flatten_outputs(output: Any) -> list[torch.Tensor]:
    """The tensors of a model's answer in order: of a tensor, a tuple or list, a dict, or these within each other."""
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, list | tuple):
        return [tensor for each in output for tensor in flatten_outputs(each)]
    return []


def read_golden(
    path: Path | str, *, folder: int | None = None, rtol: float = 1e-3, atol: float = 0.0
) -> Golden:
    """Read a golden sample; bounded, checked, nothing executed.

    Args:
        rtol, atol: the head's, for a file that does not say its own tolerance.
    Raises:
        FileNotFoundError: there is none.
        DocumentInvalid: not a golden sample, or one of a later format.
    """
    with WeightsFile(path, folder=folder) as file:
        if file.size > MAX_GOLDEN_BYTES:
            raise DocumentInvalid(f"{path} has {file.size} bytes, more than {MAX_GOLDEN_BYTES}")
        try:
            facts = json.loads(file.metadata.get(METADATA, "{}"))
            if facts.get("format", FORMAT) != FORMAT:
                raise ValueError(f"format {facts['format']!r}")
            own = facts.get("tolerance")
            given = {"same": rtol, "other": max(rtol, 2e-2)} if own is None else own
            tolerance = {key: float(given[key]) for key in ("same", "other")}
            machine = {str(key): str(value) for key, value in facts.get("machine", {}).items()}
            if not all(0 <= each < math.inf for each in tolerance.values()):
                raise ValueError(f"tolerance {tolerance}")
            inputs, outputs = _in_order(file, "input"), _in_order(file, "output")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DocumentInvalid(f"{path} is not a golden sample of format {FORMAT}: {error}") from error
        return Golden(inputs, outputs, tolerance, machine, 0.0 if own is not None else atol)


def write_golden(path: Path, golden: Golden) -> bytes:
    """Write a golden sample, whole or not at all; returns its bytes."""
    tensors = {f"input.{i}": tensor for i, tensor in enumerate(golden.inputs)}
    tensors |= {f"output.{i}": tensor for i, tensor in enumerate(golden.outputs)}
    facts = {"format": FORMAT, "tolerance": dict(golden.tolerance), "machine": dict(golden.machine)}
    data = _safetensors(tensors, {METADATA: json.dumps(facts, sort_keys=True, separators=(",", ":"))})
    replace_file(path, data)
    return data


def answer(module: nn.Module, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The tensors of `module(*inputs)`, without gradients; whatever forward raises."""
    with torch.no_grad():
        return flatten_outputs(module(*inputs))


def _in_order(file: WeightsFile, kind: str) -> tuple[torch.Tensor, ...]:
    places = {}
    for name in file.entries:
        matched = _NAME.fullmatch(name)
        if not matched:
            raise ValueError(f"tensor {name!r} is neither input.N nor output.N")
        if matched[1] == kind:
            places[int(matched[2] or 0)] = name
    if sorted(places) != list(range(len(places))):
        raise ValueError(f"{kind}s are not numbered from 0")
    read = file.read(list(places.values()))
    return tuple(read[places[position]] for position in sorted(places))


def _safetensors(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    payloads = []
    position = 0
    for name, tensor in tensors.items():
        payload = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        end = position + len(payload)
        dtype = _NAMES[str(tensor.dtype)]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [position, end]}
        payloads.append(payload)
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return b"".join((len(text).to_bytes(8, "little"), text, *payloads))


def make_golden(spec: Mapping[str, Any], weights: WeightsFile) -> tuple[Golden, bool]:
    """The golden sample that `spec` asks for (module docstring), and whether its outputs were given with the inputs.

    Raises:
        UsageError: `spec` is wrong.
        ArchitectureRefused: the architecture is not there or does not fit.
        Failed: forward failed on the inputs.
    """
    name, args, allowed = _architecture(spec)
    loaded = load(build(name, args, allowed), weights, aliases=spec.get("aliases"))
    inputs, outputs = _inputs(spec, loaded)
    kept = bool(outputs)
    if not kept:
        try:
            outputs = tuple(answer(loaded.module, inputs))
        except SyncdError:  # out of time
            raise
        except Exception as error:
            shapes = ", ".join(str(tuple(each.shape)) for each in inputs)
            raise Failed(
                f"{name} fails on golden inputs of shape {shapes}: {type(error).__name__}: {error}",
                do="mend [publish.golden]; nothing was published",
                architecture=name,
            ) from error
        if not outputs:
            raise Failed(f"{name} answers golden inputs with no tensor", architecture=name)
    tolerance = default_tolerance(outputs, loaded.module) | dict(spec.get("tolerance") or {})
    return Golden(inputs, outputs, tolerance, machine_kind()), kept


def _architecture(spec: Mapping[str, Any]) -> tuple[str, Mapping[str, Any], Sequence[str]]:
    try:
        name, args = spec["architecture"]["name"], spec["architecture"].get("args") or {}
        allowed = spec.get("allowed") or [name]
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError("the SPEC has no architecture with a name") from error
    return str(name), args, [str(each) for each in allowed]


def _inputs(
    spec: Mapping[str, Any], loaded: LoadedModel
) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    if (spec.get("shape") is None) == (spec.get("file") is None):
        raise UsageError("the SPEC needs shape or file, not both and not neither")
    if spec.get("file") is not None:
        try:
            given = read_golden(str(spec["file"]))
        except OSError as error:
            raise UsageError(f"golden file {spec['file']}: {error.strerror}") from error
        if not given.inputs:
            raise UsageError(f"golden file {spec['file']} has no tensor input.0")
        return given.inputs, given.outputs
    shape = spec["shape"]
    if not isinstance(shape, list) or not all(type(size) is int and 0 < size <= 2**20 for size in shape):
        raise UsageError(f"shape {shape!r} is not a list of sizes")
    if math.prod(shape) * 4 > MAX_GOLDEN_BYTES // 2:
        raise UsageError(f"golden inputs of shape {shape} are larger than {MAX_GOLDEN_BYTES // 2} bytes")
    generator = torch.Generator().manual_seed(int(spec.get("seed", 0)))
    floating = [each.dtype for each in loaded.module.parameters() if each.is_floating_point()]
    return (torch.randn(shape, generator=generator).to(floating[0] if floating else torch.float32),), ()


def _limit(spec: Mapping[str, Any], weights_bytes: int) -> None:
    seconds = float(spec.get("seconds") or DEFAULT_SECONDS)
    memory = int(spec.get("memory") or 4 * 2**30 + 4 * weights_bytes)
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    soft = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))

    def give_up(number: int, frame: Any) -> NoReturn:
        raise Failed(f"no golden sample within {seconds:g} s", do="give [publish.golden] a smaller shape")

    signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    # A forward that never comes back into Python would not see the alarm: the kernel ends that one.
    limit = math.ceil(seconds * (torch.get_num_threads() + 1)) + 5
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))


def _run(options: argparse.Namespace) -> dict[str, Any]:
    started = time.monotonic()
    try:
        spec = json.loads(sys.stdin.buffer.read(MAX_SPEC_BYTES))
        if not isinstance(spec, dict):
            raise ValueError("it is not an object")
    except (ValueError, RecursionError) as error:
        raise UsageError(f"standard input is no SPEC: {error}") from error
    try:
        with WeightsFile(options.weights) as weights:
            _limit(spec, weights.size)
            golden, kept = make_golden(spec, weights)
    except FileNotFoundError as error:
        raise UsageError(f"there is no weights file {options.weights}") from error
    except (MemoryError, RuntimeError) as error:
        raise Failed(
            f"no golden sample: {type(error).__name__}: {error}", do="give it more memory"
        ) from error
    data = write_golden(options.out, golden)
    return {
        "inputs": len(golden.inputs),
        "outputs": len(golden.outputs),
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "finite": all(all_finite(each) for each in golden.outputs),
        "kept_outputs": kept,
        "seconds": round(time.monotonic() - started, 3),
    }


def main() -> int:
    """The program of the module's docstring; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m syncd.model.golden", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    try:
        result, status = _run(options), 0
    except SyncdError as error:
        result, status = {"error": error.as_dict()}, 2 if isinstance(error, UsageError) else 1
    except OSError as error:
        result, status = {"error": Failed(f"{error.strerror}: {error.filename}").as_dict()}, 1
    sys.stdout.write(json.dumps(result) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
