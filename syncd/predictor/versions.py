"""One installed version as this process serves it: loaded beside the serving one, gated, warm; and how it answers."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from syncd.errors import ArchitectureRefused, DocumentInvalid, Failed, about
from syncd.model.architecture import Skeleton, build
from syncd.model.gate import DEFAULT_WITHIN_S, pass_gate
from syncd.model.golden import Golden, read_golden
from syncd.model.load import LoadedModel, load, read_digests
from syncd.model.weights import WeightsFile
from syncd.model.yielding import empty_in_steps
from syncd.node.links import HEAD_FILE, MODEL_FILE, VersionLock
from syncd.predictor.calls import Calls

MAX_HEAD_BYTES: Final = 64 * 1024
ALIASES: Final = "syncd.aliases"

Example = tuple[tuple[tuple[int, ...], torch.dtype], ...]


@dataclass(frozen=True)
class Sample:
    """Shapes and dtypes of a version's golden sample: what it takes and what it answers."""

    inputs: Example
    outputs: Example


class Serving:
    """A version that may answer: immutable after its making but for the figures of its calls."""

    __slots__ = ("_lock", "_moves_to", "calls", "example", "loaded", "module", "sample", "version")

    def __init__(self, version: int, loaded: LoadedModel, lock: VersionLock, device: torch.device) -> None:
        self.version = version
        self.loaded = loaded
        self.module = loaded.module
        self.calls = Calls()
        self.example: Example | None = None
        self.sample: Sample | None = None
        self._lock = lock  # held until the last call on this version has ended
        self._moves_to = None if device.type == "cpu" else device

    def predict(self, args: tuple[Any, ...], keywords: Mapping[str, Any]) -> Any:
        """`module(*args, **keywords)` without gradients; raises whatever forward raises.

        It counts against the version unless the arguments are of another kind than those it is known to answer: a
        caller who sends the wrong shape or dtype must not roll a good version back.
        """
        started = time.perf_counter()
        try:
            if self._moves_to is not None:
                args = tuple(_moved(each, self._moves_to) for each in args)
                keywords = {name: _moved(each, self._moves_to) for name, each in keywords.items()}
            with torch.no_grad():
                output = self.module(*args, **keywords)
        except Exception:
            if self._answers_such(args, keywords):
                self.calls.raised()
            raise
        self.calls.answered(started, args, output)
        if self.example is None:
            self.example = _example(args, keywords)
        return output

    def _answers_such(self, args: tuple[Any, ...], keywords: Mapping[str, Any]) -> bool:
        """Whether arguments have dtypes and (but for the first dimension) shapes of a good call or the sample."""
        known = [each for each in (self.example, self.sample and self.sample.inputs) if each]
        asked = _example(args, keywords)
        return not known or not asked or any(_alike(asked, each) for each in known)


def retire(serving: Serving) -> None:
    """Free a version that no call and no caller holds any more, in small steps."""
    empty_in_steps(serving.module)


class Unusable:
    """What stands in the place of a version when no call may be answered: closed, or inherited by a fork."""

    __slots__ = ("_do", "_what")

    def __init__(self, what: str, do: str) -> None:
        self._what = what
        self._do = do

    @property
    def version(self) -> int:
        """Raises Failed."""
        raise self._error()

    def predict(self, args: tuple[Any, ...], keywords: Mapping[str, Any]) -> Any:
        """Raises Failed."""
        raise self._error()

    def _error(self) -> Failed:
        return Failed(self._what, do=self._do)


CLOSED: Final = Unusable("this predictor is closed", "open another with open_predictor")
FORKED: Final = Unusable(
    "this predictor was opened before a fork: its threads and locks stayed in the parent",
    "call open_predictor in the child; the parent's predictor goes on",
)


class VersionLoader:
    """Makes installed versions servable; keeps the skeleton between them. Used by one thread at a time.

    Args:
        builder: the application's own callable; None: the architecture comes by name from the head.
        allowed: patterns of names that may be imported then.
    """

    def __init__(
        self, builder: Callable[[], nn.Module] | None, allowed: Sequence[str], device: torch.device | str
    ) -> None:
        self.device = torch.device(device)
        self._builder = builder
        self._allowed = tuple(allowed)
        self._skeleton: tuple[str, Skeleton] | None = None

    def load(
        self,
        lock: VersionLock,
        *,
        serving: Serving | None = None,
        within_s: float = DEFAULT_WITHIN_S,
    ) -> Serving:
        """Load the version that `lock` holds beside `serving`, share what is equal, and pass it through the gate.

        Raises:
            ArchitectureRefused: not allowed, not there, or it does not fit.
            DocumentInvalid: a file of the version is not what it should be, or there is no model view.
            GateRefused: it does not pass; `where` names the stage.
        """
        with about(version=lock.version):
            head = _read_head(lock)
            skeleton = self._skeleton_for(head)
            with _open_weights(lock) as weights:
                loaded = load(
                    skeleton,
                    weights,
                    aliases=_aliases(weights, head),
                    digests=read_digests(lock.descriptor),
                    serving=serving.loaded if serving is not None else None,
                    device=self.device,
                )
            example = serving.example if serving is not None else None
            golden = _golden(lock, head)
            pass_gate(
                loaded,
                golden=golden,
                warm_up=None
                if example is None
                else [torch.zeros(shape, dtype=dtype) for shape, dtype in example],
                within_s=within_s,
                device=self.device,
            )
            made = Serving(lock.version, loaded, lock, self.device)
            made.example = example
            if golden is not None:
                made.sample = Sample(_kinds(golden.inputs), _kinds(golden.outputs))
            return made

    def _skeleton_for(self, head: Mapping[str, Any]) -> Skeleton:
        if self._builder is not None:
            if self._skeleton is None:
                self._skeleton = ("build=", Skeleton(self._builder))
            return self._skeleton[1]
        architecture = head.get("architecture")
        if not isinstance(architecture, dict) or not isinstance(architecture.get("name"), str):
            raise ArchitectureRefused(
                "the version names no architecture",
                do="open_predictor(…, build=callable) with your own module, or publish with [publish.architecture]",
            )
        name, args = architecture["name"], architecture.get("args") or {}
        if not isinstance(args, dict):
            raise DocumentInvalid(f"the arguments of architecture {name} are no object")
        key = json.dumps([name, args], sort_keys=True)
        if self._skeleton is None or self._skeleton[0] != key:
            self._skeleton = (key, build(name, args, self._allowed))
        return self._skeleton[1]


def _read_head(lock: VersionLock) -> dict[str, Any]:
    try:
        descriptor = os.open(HEAD_FILE, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=lock.descriptor)
    except OSError as error:
        raise DocumentInvalid(f"{lock.path / HEAD_FILE} cannot be read: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(MAX_HEAD_BYTES + 1)
    try:
        head = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DocumentInvalid(f"{lock.path / HEAD_FILE} is not JSON: {error}") from error
    if len(data) > MAX_HEAD_BYTES or not isinstance(head, dict):
        raise DocumentInvalid(f"{lock.path / HEAD_FILE} is not an object of at most {MAX_HEAD_BYTES} bytes")
    return head


def _open_weights(lock: VersionLock) -> WeightsFile:
    try:
        return WeightsFile(MODEL_FILE, folder=lock.descriptor)
    except FileNotFoundError as error:
        raise DocumentInvalid(
            f"version {lock.version} has no model view: it cannot predict",
            why="its checkpoint holds no tensors that syncd serves",
            path=lock.path,
        ) from error
    except OSError as error:
        raise DocumentInvalid(f"{lock.path / MODEL_FILE} cannot be read: {error.strerror}") from error


def _golden(lock: VersionLock, head: Mapping[str, Any]) -> Golden | None:
    """The golden sample that the head names; one that is named must be there."""
    named = head.get("golden")
    if named is None:
        return None
    try:
        file, rtol, atol = str(named["file"]), float(named["rtol"]), float(named["atol"])
        if "/" in file:
            raise ValueError(file)
        return read_golden(file, folder=lock.descriptor, rtol=rtol, atol=atol)
    except (KeyError, TypeError, ValueError) as error:
        raise DocumentInvalid(
            f"golden in {lock.path / HEAD_FILE} is not {{file, rtol, atol}}: {error}"
        ) from error
    except OSError as error:
        raise DocumentInvalid(
            f"the golden sample {lock.path / file} cannot be read: {error.strerror}"
        ) from error


def _aliases(weights: WeightsFile, head: Mapping[str, Any]) -> dict[str, str]:
    """Tied names → names in the file, of the file's metadata or the head; the skeleton knows its own ties besides."""
    aliases: dict[str, str] = {}
    for given in (head.get("aliases"), _json(weights.metadata.get(ALIASES))):
        if isinstance(given, dict):
            aliases.update({str(alias): str(name) for alias, name in given.items()})
    return aliases


def _json(text: str | None) -> Any:
    try:
        return json.loads(text) if text else None
    except ValueError as error:
        raise DocumentInvalid(f"metadata {ALIASES} of {MODEL_FILE} is not JSON: {error}") from error


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value


def _example(args: tuple[Any, ...], keywords: Mapping[str, Any]) -> Example:
    """Shapes and dtypes to warm the next version up with; empty where a call has more than tensors."""
    if keywords or not all(isinstance(each, torch.Tensor) for each in args):
        return ()
    return _kinds(args)


def _alike(asked: Example, known: Example) -> bool:
    return [(shape[1:], dtype) for shape, dtype in asked] == [(shape[1:], dtype) for shape, dtype in known]


def _kinds(tensors: Sequence[torch.Tensor]) -> Example:
    return tuple((tuple(each.shape), each.dtype) for each in tensors)
