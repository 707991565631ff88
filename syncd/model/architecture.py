"""From an architecture's name to a skeleton: a module built once without wasted work, copied for each version."""

from __future__ import annotations

import copy
import fnmatch
import functools
import importlib
import inspect
import json
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import nn

from syncd.errors import ArchitectureRefused
from syncd.model.yielding import copy_in_steps

DEFAULT_ALLOWED: Final = ("torchvision.models:*",)
MAX_ARGS_BYTES: Final = 16 * 1024

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*")
# Arguments that make a builder fetch somebody else's weights over the network: ours come from the version.
_FETCHING = ("weights", "weights_backbone", "pretrained", "pretrained_backbone")
# Random initialisers, whose work is thrown away. constant_, ones_ and zeros_ stay: they cost little, and a buffer that
# is not in the checkpoint may be made with them.
_INITIALISERS = (
    "uniform_",
    "normal_",
    "trunc_normal_",
    "xavier_uniform_",
    "xavier_normal_",
    "kaiming_uniform_",
    "kaiming_normal_",
    "orthogonal_",
    "sparse_",
)
_patching = threading.Lock()


def find_builder(
    name: str, args: Mapping[str, Any], allowed: Sequence[str] = DEFAULT_ALLOWED
) -> Callable[[], nn.Module]:
    """The call that builds the architecture `name` ("package.module:callable") with keyword arguments `args`.

    Nothing is imported before the name has matched `allowed` (patterns with `*` and `?`; the module must match as
    written). The callable must be a function or class of that package, and of torchvision's it must build a model.

    Raises:
        ArchitectureRefused: not allowed, not there, or `args` ask for downloaded weights or are no plain arguments.
    """
    where = {"architecture": name}
    if not _NAME.fullmatch(name):
        raise ArchitectureRefused(f"{name!r} is not package.module:callable", **where)
    if not any(_matches(name, pattern) for pattern in allowed):
        raise ArchitectureRefused(
            f"architecture {name} is not allowed here: {', '.join(allowed) or 'none is'}",
            do="allow it with architectures=, or build it yourself with build=; the version that serves goes on",
            **where,
        )
    _check_args(args, where)
    target = _import(name, where)
    keywords = dict(args)
    for fetching in _FETCHING:
        if keywords.pop(fetching, None):
            raise ArchitectureRefused(
                f"argument {fetching} would fetch other weights than the version's", **where
            )
        if fetching in _parameters(target):
            keywords[fetching] = False if fetching.startswith("pretrained") else None
    return functools.partial(target, **keywords)


def build(name: str, args: Mapping[str, Any], allowed: Sequence[str] = DEFAULT_ALLOWED) -> Skeleton:
    """The skeleton of an architecture by name; see `find_builder` for what is refused."""
    return Skeleton(find_builder(name, args, allowed), name=name, without_init=True)


class Skeleton:
    """An architecture without weights: built once, then `instance()` copies it cheaply for each version.

    What a checkpoint will bring (parameters, persistent buffers) is kept on `meta`, so a skeleton holds next to no
    memory; buffers that no checkpoint has are kept as built. Where a module keeps its parameters in places of its own,
    or refuses to be copied, the fallback is to build again.

    Args:
        builder: called without arguments, returns an `nn.Module`.
        name: for messages.
        without_init: skip random initialisers while building; for builders that are known to bear it.
    Raises:
        ArchitectureRefused: the builder failed or returned something else.
    """

    def __init__(
        self, builder: Callable[[], nn.Module], *, name: str = "build=", without_init: bool = False
    ) -> None:
        self.name = name
        self._builder = builder
        self._without_init = without_init
        module = self._build()
        self.ties = _ties(module)
        self.parameter_names = frozenset(each for each, _ in module.named_parameters(remove_duplicate=False))
        self.metadata = getattr(module.state_dict(), "_metadata", None)
        moved = _to_meta(module)
        # What is to be replaced needs no copy: deepcopy would clone it, tensor by tensor.
        self._uncopied: dict[int, torch.Tensor] = {id(each): each for each in moved or ()}
        self._light: nn.Module | None = module if moved is not None and self._copies(module) else None

    def instance(self) -> nn.Module:
        """A module of this architecture with no weights yet: load all of its tensors before use."""
        if self._light is None:
            return self._build()
        return copy_in_steps(self._light, self._uncopied)

    def _copies(self, module: nn.Module) -> bool:
        try:
            copy.deepcopy(module, dict(self._uncopied))
        except (RuntimeError, TypeError, NotImplementedError):  # non-leaf tensors, locks, generators
            return False
        return True

    def _build(self) -> nn.Module:
        try:
            with _no_init() if self._without_init else _nothing():
                module = self._builder()
        except Exception as error:
            if self._without_init:
                self._without_init = False
                return self._build()
            raise ArchitectureRefused(
                f"{self.name} did not build: {type(error).__name__}: {error}", architecture=self.name
            ) from error
        if not isinstance(module, nn.Module):
            raise ArchitectureRefused(
                f"{self.name} returned {type(module).__name__}, not an nn.Module", architecture=self.name
            )
        module.requires_grad_(False)
        return module.eval()


def _matches(name: str, pattern: str) -> bool:
    module, _, attribute = name.partition(":")
    module_pattern, _, attribute_pattern = pattern.partition(":")
    return fnmatch.fnmatchcase(module, module_pattern) and fnmatch.fnmatchcase(
        attribute, attribute_pattern or "*"
    )


def _check_args(args: Mapping[str, Any], where: dict[str, str]) -> None:
    try:
        size = len(json.dumps(dict(args)))
    except (TypeError, ValueError, RecursionError) as error:
        raise ArchitectureRefused(f"arguments are not JSON: {error}", **where) from error
    if size > MAX_ARGS_BYTES or not all(isinstance(key, str) and key.isidentifier() for key in args):
        raise ArchitectureRefused(
            f"arguments are not names with at most {MAX_ARGS_BYTES} bytes of JSON", **where
        )


def _import(name: str, where: dict[str, str]) -> Callable[..., nn.Module]:
    module_name, _, attribute = name.partition(":")
    try:
        target = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ArchitectureRefused(
            f"architecture {name} does not exist: {error}",
            do="mend `name` in [publish.architecture], or install the package that has it",
            **where,
        ) from error
    package = module_name.partition(".")[0]
    own = inspect.isclass(target) or inspect.isfunction(target)
    if attribute.startswith("_") or not own or target.__module__.partition(".")[0] != package:
        raise ArchitectureRefused(f"{name} is not a public function or class of {package}", **where)
    if package == "torchvision" and not _builds_a_model(target):
        raise ArchitectureRefused(f"{name} does not build a model", **where)
    found: Callable[..., nn.Module] = target
    return found


def _builds_a_model(target: Any) -> bool:
    """Whether a name of torchvision is a model's: `get_model` and its like reach past the list of what is allowed."""
    if inspect.isclass(target):
        return issubclass(target, nn.Module)
    from torchvision.models import list_models

    return target.__name__ in list_models()


def _parameters(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(target).parameters
    except (TypeError, ValueError):
        return {}


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _no_init() -> Iterator[None]:
    """Random initialisers do nothing in this thread; other threads, which may be building to train, keep theirs."""
    owner = threading.get_ident()

    def skipping(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        @functools.wraps(original)
        def initialise(tensor: torch.Tensor, *args: Any, **keywords: Any) -> torch.Tensor:
            return tensor if threading.get_ident() == owner else original(tensor, *args, **keywords)

        return initialise

    with _patching:
        originals = {each: getattr(nn.init, each) for each in _INITIALISERS}
        try:
            for each, original in originals.items():
                setattr(nn.init, each, skipping(original))
            with (
                warnings.catch_warnings()
            ):  # GoogLeNet and Inception warn about the initialisation that is skipped
                warnings.simplefilter("ignore", FutureWarning)
                yield
        finally:
            for each, original in originals.items():
                setattr(nn.init, each, original)


def _ties(module: nn.Module) -> tuple[tuple[str, ...], ...]:
    """Groups of names that are one parameter or buffer in `module`, each in state-dict order."""
    groups: dict[int, list[str]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if isinstance(tensor, torch.Tensor):
            groups.setdefault(id(tensor), []).append(name)
    return tuple(tuple(names) for names in groups.values() if len(names) > 1)


def _to_meta(module: nn.Module) -> list[torch.Tensor] | None:
    """Put what a state dict replaces on `meta`; None where the module keeps such a tensor in a place of its own."""
    moved: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for each in module.modules():
        persistent = [name for name in each._buffers if name not in each._non_persistent_buffers_set]
        for name in (*each._parameters, *persistent):
            tensor = getattr(each, name)
            if tensor is None:
                continue
            if id(tensor) not in moved:
                empty: torch.Tensor = torch.empty_like(tensor, device="meta")
                if isinstance(tensor, nn.Parameter):
                    empty = nn.Parameter(empty, requires_grad=False)
                moved[id(tensor)] = (tensor, empty)
            setattr(each, name, moved[id(tensor)][1])
    if any(_keeps(value, moved) for each in module.modules() for value in vars(each).values()):
        return None
    return [empty for _, empty in moved.values()]


def _keeps(value: Any, moved: Mapping[int, Any]) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple | set):
        return any(id(each) in moved for each in value)
    return id(value) in moved
