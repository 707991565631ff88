"""The models that a server answers for: each followed from the start, and what it tells of itself."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from syncd.node.links import NodeFolder
from syncd.predictor.follow import Follower, Place
from syncd.predictor.predictor import Predictor
from syncd.predictor.v2.refusals import Refusal, not_ready, unknown
from syncd.predictor.v2.tensors import DATATYPES, TensorSpec
from syncd.predictor.versions import Example, Serving, VersionLoader

PLATFORM: Final = "syncd_pytorch"
KEPT_VERSIONS: Final = 16
_PHASES: Final = ("queue", "compute_input", "compute_infer", "compute_output")


@dataclass(frozen=True)
class ModelOptions:
    """How one model is served; `inputs` and `outputs` name its tensors where `input` and `output` will not do."""

    model: str
    device: str = "auto"
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


@dataclass
class Took:
    """Where the time of one request went, in nanoseconds."""

    queue: int = 0
    compute_input: int = 0
    compute_infer: int = 0
    compute_output: int = 0


@dataclass
class _Counts:
    success: int = 0
    fail: int = 0
    fail_ns: int = 0
    inferences: int = 0
    last_ms: int = 0
    ns: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_PHASES, 0))


class Statistics:
    """Counts of each version that answered here, the newest 16; any thread may note."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._versions: OrderedDict[int, _Counts] = OrderedDict()

    def answered(self, version: int, took: Took, batch: int, now_ms: int) -> None:
        """Note an answer to `batch` samples."""
        with self._lock:
            counts = self._counts(version)
            counts.success += 1
            counts.inferences += batch
            counts.last_ms = now_ms
            for phase in _PHASES:
                counts.ns[phase] += getattr(took, phase)

    def failed(self, version: int, ns: int) -> None:
        """Note a request that the version did not answer."""
        with self._lock:
            counts = self._counts(version)
            counts.fail += 1
            counts.fail_ns += ns

    def _counts(self, version: int) -> _Counts:
        if version not in self._versions:
            self._versions[version] = _Counts()
            while len(self._versions) > KEPT_VERSIONS:
                self._versions.popitem(last=False)
        return self._versions[version]

    def document(self, model: str, version: int) -> dict[str, Any]:
        """One entry of `model_stats`."""
        with self._lock:
            counts = self._versions.get(version, _Counts())
            phases = {phase: {"count": counts.success, "ns": counts.ns[phase]} for phase in _PHASES}
            return {
                "name": model,
                "version": str(version),
                "last_inference": counts.last_ms,
                "inference_count": counts.inferences,
                "execution_count": counts.success,
                "inference_stats": {
                    "success": {"count": counts.success, "ns": sum(counts.ns.values())},
                    "fail": {"count": counts.fail, "ns": counts.fail_ns},
                    **phases,
                    "cache_hit": {"count": 0, "ns": 0},
                    "cache_miss": {"count": 0, "ns": 0},
                },
                "batch_stats": [],
                "memory_usage": [],
            }


class ServedModel:
    """One model: its follower votes, gates and swaps; requests take the version that serves at that moment."""

    def __init__(self, options: ModelOptions, node: Path, architectures: Sequence[str]) -> None:
        self.name = options.model
        self.statistics = Statistics()
        self._options = options
        self.device = device_of(options.device)
        self._place = Place()
        loader = VersionLoader(None, architectures, self.device)
        self._follower = Follower(
            NodeFolder(node).model_folder(options.model), loader, self._place, voter=True
        )
        self._predictor = Predictor(self._follower, self._place)

    def start(self) -> None:
        """Follow from now on, in a thread of its own; blocks until what is installed serves or is refused."""
        self._follower.start()
        self._follower.wait_for_first_look()

    def close(self) -> None:
        """Leave the node folder; calls in flight finish."""
        self._predictor.close()

    @property
    def version(self) -> int | None:
        """The version that serves; None before the first install."""
        serving = self._place.version
        return None if serving is None else serving.version

    @property
    def why(self) -> str:
        """Why nothing serves, or the last thing that went wrong."""
        return self._follower.why or ("" if self.version is not None else "no version is installed yet")

    def serving(self, demanded: str | None = None) -> Serving:
        """The version that serves, for one request.

        Raises:
            Refusal: 503 before the first install; 404 where another version is demanded.
        """
        serving = self._place.version
        if serving is None:
            raise not_ready(f"model {self.name} is not ready: {self.why}")
        if demanded is not None and demanded != str(serving.version):
            raise unknown(
                f"version {demanded[:32]!r} of model {self.name} does not serve here; {serving.version} does"
            )
        return serving

    def inputs(self, serving: Serving) -> tuple[TensorSpec, ...] | None:
        """What the version takes, by its golden sample; None without one."""
        if serving.sample is None:
            return None
        return _specs(serving.sample.inputs, self._options.inputs, "input")

    def outputs(self, serving: Serving) -> tuple[TensorSpec, ...] | None:
        """What the version answers, by its golden sample; None without one."""
        if serving.sample is None:
            return None
        return _specs(serving.sample.outputs, self._options.outputs, "output")

    def output_names(self, count: int) -> list[str]:
        """The names of `count` outputs."""
        return _names(count, self._options.outputs, "output")

    def metadata(self, demanded: str | None) -> dict[str, Any]:
        """V2's model metadata; a model without a golden sample tells no tensors."""
        serving = self.serving(demanded)
        return {
            "name": self.name,
            "versions": [str(serving.version)],
            "platform": PLATFORM,
            "inputs": [spec.document() for spec in self.inputs(serving) or ()],
            "outputs": [spec.document() for spec in self.outputs(serving) or ()],
        }

    def config(self, demanded: str | None) -> dict[str, Any]:
        """Triton's model configuration, as far as it means something here."""
        serving = self.serving(demanded)
        return {
            "name": self.name,
            "platform": PLATFORM,
            "backend": "syncd",
            "version_policy": {"specific": {"versions": [serving.version]}},
            "max_batch_size": 0,  # the shapes hold the batch dimension
            "input": [_config_entry(spec) for spec in self.inputs(serving) or ()],
            "output": [_config_entry(spec) for spec in self.outputs(serving) or ()],
            "instance_group": [{"name": self.name, "kind": _kind(self.device), "count": 1}],
        }

    def stats(self, demanded: str | None) -> dict[str, Any]:
        """The entry of the version that serves, or of none before the first."""
        return self.statistics.document(self.name, self.serving(demanded).version)

    def index(self) -> dict[str, str]:
        """One entry of the repository's index."""
        version = self.version
        state = "UNAVAILABLE" if version is None else "READY"
        entry = {"name": self.name, "state": state, "reason": self.why if version is None else ""}
        return entry if version is None else {**entry, "version": str(version)}


def device_of(wanted: str) -> torch.device:
    """The device that `auto`, `cpu` or `cuda:1` means on this machine.

    Raises:
        Refusal: there is no such device here.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(wanted)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise Refusal(500, "failed", f"this machine has no {wanted}")
    return device


def _specs(example: Example, named: tuple[str, ...], kind: str) -> tuple[TensorSpec, ...]:
    names = _names(len(example), named, kind)
    return tuple(
        TensorSpec(name, DATATYPES.get(dtype, str(dtype)), (-1, *shape[1:]) if shape else ())
        for name, (shape, dtype) in zip(names, example, strict=True)
    )


def _names(count: int, named: tuple[str, ...], kind: str) -> list[str]:
    if len(named) == count:
        return list(named)
    return [kind] if count == 1 else [f"{kind}.{place}" for place in range(count)]


def _config_entry(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "data_type": f"TYPE_{spec.datatype}", "dims": list(spec.shape)}


def _kind(device: torch.device) -> str:
    return "KIND_CPU" if device.type == "cpu" else "KIND_GPU"
