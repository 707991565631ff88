"""Loading a version beside the one that serves: a copy of the skeleton, tensors read or shared, ties tied again."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from syncd.errors import ArchitectureRefused
from syncd.model.architecture import Skeleton
from syncd.model.finite import all_finite
from syncd.model.weights import WeightsFile
from syncd.model.yielding import in_steps

MAX_DIGESTS_BYTES: Final = 64 * 2**20


def read_digests(folder: int) -> dict[str, str]:
    """`model.digests` below the version's folder (a descriptor): name → digest; empty where it is missing or newer."""
    try:
        descriptor = os.open("model.digests", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=folder)
    except FileNotFoundError:
        return {}
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(MAX_DIGESTS_BYTES)
    try:
        tensors = json.loads(data)["tensors"]
        return {str(name): str(digest) for name, digest in tensors.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}  # only sharing depends on it


@dataclass(frozen=True)
class LoadedModel:
    """A module with its weights, in eval mode, and what a later version needs to share them.

    `identities`: parameter's name → what makes it equal to another version's (entry, digest, device); `suspects`: the
    tensors with NaN or infinities among those that were read for this version; the others are shared.
    """

    module: nn.Module
    parameters: Mapping[str, torch.Tensor]
    identities: Mapping[str, tuple[Any, ...]]
    suspects: Mapping[str, torch.Tensor]
    read_bytes: int
    shared_bytes: int


def load(
    skeleton: Skeleton,
    weights: WeightsFile,
    *,
    aliases: Mapping[str, str] | None = None,
    digests: Mapping[str, str] | None = None,
    serving: LoadedModel | None = None,
    device: torch.device | str = "cpu",
) -> LoadedModel:
    """Load a version into a new module; nothing that serves is touched.

    Args:
        aliases: tied name → its name in the file.
        digests: the file's `model.digests`; without them nothing is shared.
        serving: the version whose equal parameters are shared; buffers never are, since forward may change them.
    Raises:
        ArchitectureRefused: names or shapes do not fit the architecture; all kinds of misfit are listed.
        DocumentInvalid: the file is cut off.
    """
    device = torch.device(device)
    identities = _identities(weights, digests or {}, device)
    tensors: dict[str, torch.Tensor] = {}
    if serving is not None:
        for name in skeleton.parameter_names & identities.keys():
            if serving.identities.get(name) == identities[name]:
                tensors[name] = serving.parameters[name]
    read = weights.read(weights.entries.keys() - tensors.keys())
    suspects = {name: tensor for name, tensor in read.items() if not all_finite(tensor)}
    read_bytes = sum(tensor.nbytes for tensor in read.values())
    shared_bytes = sum(tensor.nbytes for tensor in tensors.values())
    tensors.update(read if device.type == "cpu" else {name: each.to(device) for name, each in read.items()})
    module = _assembled(skeleton, tensors, aliases or {})
    if device.type != "cpu":
        module.to(device)  # buffers that no checkpoint has
    return LoadedModel(
        module=module,
        parameters={name: tensor for name, tensor in tensors.items() if name in skeleton.parameter_names},
        identities=identities,
        suspects=suspects,
        read_bytes=read_bytes,
        shared_bytes=shared_bytes,
    )


def _identities(
    weights: WeightsFile, digests: Mapping[str, str], device: torch.device
) -> dict[str, tuple[Any, ...]]:
    return {
        name: (entry.dtype, entry.shape, entry.permutation, digests[name], device)
        for name, entry in weights.entries.items()
        if name in digests
    }


def _assembled(
    skeleton: Skeleton, tensors: Mapping[str, torch.Tensor], aliases: Mapping[str, str]
) -> nn.Module:
    module = skeleton.instance()
    state = _state_dict(skeleton, tensors, aliases)
    missing, unexpected, errors = assign(module, state, skeleton.metadata)
    if errors:
        raise ArchitectureRefused(
            f"the tensors do not fit {skeleton.name}: {_one_line('; '.join(errors))}",
            architecture=skeleton.name,
        )
    misfits = [
        f"{kind} {_listed(names)}"
        for kind, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    if misfits:
        raise ArchitectureRefused(
            f"the tensors do not fit {skeleton.name}: {'; '.join(misfits)}",
            why="the checkpoint was made by another architecture, or under a prefix",
            do="mend [publish.architecture] or [publish.weights]; the version that serves goes on serving",
            architecture=skeleton.name,
        )
    return module


def assign(
    module: nn.Module, state: Mapping[str, torch.Tensor], metadata: Mapping[str, Any] | None
) -> tuple[list[str], list[str], list[str]]:
    """`module.load_state_dict(state, assign=True)`: the names that are missing, those that are unexpected, misfits.

    torch's own walk copies the dict at each level and never gives the GIL away. Where no module has ideas of its own
    about loading, each one's part is loaded alone, by torch's method for it; else torch's walk does it all.
    """
    if not all(_loads_plainly(each) for each in module.modules()):
        return _assign_in_one_go(module, state, metadata)
    missing: list[str] = []
    errors: list[str] = []
    used: set[str] = set()
    for path, each in in_steps(module.named_modules(remove_duplicate=False)):
        prefix = f"{path}." if path else ""
        persistent = (name for name in each._buffers if name not in each._non_persistent_buffers_set)
        part = {
            key: state[key] for name in (*each._parameters, *persistent) if (key := prefix + name) in state
        }
        used |= part.keys()
        facts = {**(metadata or {}).get(path, {}), "assign_to_params_buffers": True}
        each._load_from_state_dict(part, prefix, facts, True, missing, [], errors)
    return missing, sorted(state.keys() - used), errors


def _loads_plainly(module: nn.Module) -> bool:
    """Whether loading `module` needs its own tensors alone: no hooks, no method that is not torch's own."""
    if module._load_state_dict_pre_hooks or module._load_state_dict_post_hooks:
        return False
    kind = type(module)
    if (
        kind.get_extra_state is not nn.Module.get_extra_state
        or kind.load_state_dict is not nn.Module.load_state_dict
    ):
        return False
    return kind._load_from_state_dict.__module__.startswith("torch.nn.modules.")


def _assign_in_one_go(
    module: nn.Module, state: Mapping[str, torch.Tensor], metadata: Mapping[str, Any] | None
) -> tuple[list[str], list[str], list[str]]:
    whole: Any = _State(state)
    if metadata is not None:
        whole._metadata = metadata
    try:
        result = module.load_state_dict(whole, strict=False, assign=True)
    except (RuntimeError, ValueError) as error:
        return [], [], [str(error)]
    return list(result.missing_keys), list(result.unexpected_keys), []


class _State(dict[str, torch.Tensor]):
    """A state dict that can carry `_metadata`, as torch's own does."""


def _state_dict(
    skeleton: Skeleton, tensors: Mapping[str, torch.Tensor], aliases: Mapping[str, str]
) -> dict[str, torch.Tensor]:
    """Tensors under every name, tied ones as one and the same parameter: assigning would untie them otherwise."""
    state: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        # A parameter of its own over memory that may be shared.
        state[name] = (
            nn.Parameter(tensor, requires_grad=False) if name in skeleton.parameter_names else tensor
        )
    for alias, name in aliases.items():
        if name in state:
            state.setdefault(alias, state[name])
    for tied in skeleton.ties:
        present = [name for name in tied if name in state]
        # The last one wins, as it does when torch copies a state dict into tied parameters.
        state.update(dict.fromkeys(tied, state[present[-1]]) if present else {})
    return state


def _listed(names: Collection[str], most: int = 8) -> str:
    shown = ", ".join(sorted(names)[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def _one_line(text: str, most: int = 800) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most]}…"
