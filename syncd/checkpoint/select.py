"""Which part of a checkpoint is the model, and what its tensors are called.

The rules, for checkpoints that are dictionaries (torch) or one table (safetensors):
1. A configured `key` decides: `"model"`, `"ema/model"`. Where it holds tables only, they are joined with dots.
2. Else the candidates are pickled modules and the tables with string keys that hold more than single numbers, without
   optimizer states, schedulers, callbacks and random states (tables of nothing but U8). One candidate is the model.
3. Of several, the first kind in this order wins: ema · state_dict · model_state_dict · model · module · model_state ·
   net · the root · any other name; of one kind, the one nearest to the root. Two of equal rank: ask.
4. Names: a configured `strip_prefix` is taken off, and a tensor without it is left out. Without one, `module.`
   (DataParallel) and `_orig_mod.` (torch.compile) go if every name has them; nothing else is guessed.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from syncd.checkpoint.read import Checkpoint, Group, KeyPath, key_text
from syncd.errors import ModelAmbiguous

_RANKS: Final = ("state_dict", "model_state_dict", "model", "module", "model_state", "net")
_EMA: Final = frozenset(
    {"ema", "state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema_model_state_dict"}
)
_AUTOMATIC_PREFIXES: Final = ("module.", "_orig_mod.")
_OPTIMIZER_NAMES: Final = frozenset(
    {
        "exp_avg",
        "exp_avg_sq",
        "max_exp_avg_sq",
        "momentum_buffer",
        "square_avg",
        "exp_avg_sq_row",
        "acc_delta",
    }
)
_NOT_MODEL: Final = frozenset(
    {
        "callbacks",
        "lr_scheduler",
        "lr_schedulers",
        "scheduler",
        "scaler",
        "loops",
        "rng_state",
        "random_states",
    }
)
_MANY: Final = 8


@dataclass(frozen=True)
class ModelTensor:
    """A tensor of the model: its name for the predictor, and its index in the checkpoint's table."""

    name: str
    tensor: int


@dataclass(frozen=True)
class Selection:
    """The model of a checkpoint; no tensors at all where there is none.

    `aliases`: names of tied tensors → the name in `tensors`. `left_out`: (name, why) of what cannot be served.
    """

    key: KeyPath
    tensors: tuple[ModelTensor, ...]
    aliases: dict[str, str]
    left_out: tuple[tuple[str, str], ...]


def select_model(
    checkpoint: Checkpoint, *, key: str | None = None, strip_prefix: str | None = None
) -> Selection:
    """The model's tensors by the rules above.

    Raises:
        ModelAmbiguous: two candidates of equal rank, a key or a prefix that matches nothing; `do` says what to write.
    """
    groups = [group for group in checkpoint.groups if _can_be_model(checkpoint, group)]
    if key is not None:
        path, named = _at_key(checkpoint, key, groups)
    elif not groups:
        return Selection((), (), {}, ())
    else:
        group = _choose(checkpoint, groups)
        path, named = group.key, list(zip(group.names, group.tensors, strict=True))
    named, left_out = _strip(checkpoint, named, strip_prefix)
    return _finish(checkpoint, path, named, left_out + _tables_within(groups, path, named))


def _can_be_model(checkpoint: Checkpoint, group: Group) -> bool:
    if not group.strings or is_training_state(group):
        return False
    records = [checkpoint.tensors[index] for index in group.tensors]
    if all(record.dtype == "U8" for record in records):  # states of random number generators
        return False
    return group.module or any(record.shape or not record.readable for record in records)


def is_training_state(group: Group) -> bool:
    """Whether the group belongs to an optimizer, a scheduler, callbacks or random number generators."""
    if _OPTIMIZER_NAMES & set(group.names):
        return True
    if any(first == "state" and type(second) is int for first, second in pairwise(group.key)):
        return True  # an optimizer's state by parameter number, whatever its own names are
    parts = [part.lower() for part in group.key if isinstance(part, str)]
    return any("optim" in part or part in _NOT_MODEL for part in parts)


def _at_key(
    checkpoint: Checkpoint, key: str, candidates: list[Group]
) -> tuple[KeyPath, list[tuple[str, int]]]:
    """(path, named tensors) at a configured key: one table, or all tables below it joined with dots."""
    for group in checkpoint.groups:
        if key in (key_text(group.key), ".".join(map(str, group.key))):
            return group.key, list(zip(group.names, group.tensors, strict=True))
    parts = tuple(key.split("/"))
    named: list[tuple[str, int]] = []
    found: KeyPath | None = None
    for group in checkpoint.groups:
        text = tuple(str(part) for part in group.key)
        if text[: len(parts)] == parts:
            found = group.key[: len(parts)]
            inner = ".".join(text[len(parts) :])
            pairs = zip(group.names, group.tensors, strict=True)
            named += [(f"{inner}.{name}", tensor) for name, tensor in pairs]
    if found is None:
        raise ModelAmbiguous(
            f"the checkpoint has no tensors at key {key!r}",
            why=f"its tables are: {_list(candidates or list(checkpoint.groups))}",
            do=_line(candidates or list(checkpoint.groups)),
            path=checkpoint.path,
        )
    return found, named


def _tables_within(groups: list[Group], path: KeyPath, named: list[tuple[str, int]]) -> list[tuple[str, str]]:
    """Tables below the chosen one whose tensors it does not have: nobody shall miss them in silence."""
    chosen = {tensor for _, tensor in named}
    below = [group for group in groups if group.key[: len(path)] == path and not chosen & set(group.tensors)]
    why = "a table within the model's, with {} tensors that are not served"
    return [(key_text(group.key), why.format(len(group.names))) for group in below[:_MANY]]


def _choose(checkpoint: Checkpoint, groups: list[Group]) -> Group:
    if len(groups) == 1:
        return groups[0]
    most = max(len(group.names) for group in groups)
    # What is called ema and is far smaller than the rest holds its numbers, not its weights.
    groups = [group for group in groups if _rank(group)[0] or 2 * len(group.names) >= most]
    ranked = sorted(groups, key=_rank)
    best = [group for group in ranked if _rank(group) == _rank(ranked[0])]
    if len(best) > 1:
        raise ModelAmbiguous(
            f"{len(best)} parts of {checkpoint.path.name} could be the model: {_list(best)}",
            why="none of them has a name that syncd prefers over the others",
            do=_line(best),
            path=checkpoint.path,
        )
    return best[0]


def _rank(group: Group) -> tuple[int, int]:
    """(kind of name, depth): lower is better."""
    parts = [part for part in group.key if isinstance(part, str)]
    if _EMA & set(parts):
        return 0, len(group.key)
    if not group.key:
        return len(_RANKS) + 1, 0
    last = parts[-1] if parts else ""
    if last in _RANKS:
        return _RANKS.index(last) + 1, len(group.key)
    return len(_RANKS) + 2, len(group.key)


def _list(groups: list[Group]) -> str:
    texts = [f"{key_text(group.key)} ({len(group.names)} tensors)" for group in groups[:_MANY]]
    return ", ".join(texts) + (f" and {len(groups) - _MANY} more" if len(groups) > _MANY else "")


def _line(groups: list[Group]) -> str:
    example = key_text(groups[0].key) if groups else "model"
    return f'write under [publish.weights]: key = "{example}" (or another of them); nothing was published'


def _strip(
    checkpoint: Checkpoint, named: list[tuple[str, int]], strip_prefix: str | None
) -> tuple[list[tuple[str, int]], list[tuple[str, str]]]:
    """Names without their prefix, and the tensors that are left out for lacking it."""
    if strip_prefix is not None:
        kept = [
            (name[len(strip_prefix) :], tensor) for name, tensor in named if name.startswith(strip_prefix)
        ]
        if named and not kept:
            raise ModelAmbiguous(
                f"no tensor's name begins with {strip_prefix!r}",
                why=f"the first name is {named[0][0]!r}",
                do="correct strip_prefix under [publish.weights] or take it out; nothing was published",
                path=checkpoint.path,
            )
        why = f"its name does not begin with {strip_prefix!r}"
        return kept, [(name, why) for name, _ in named if not name.startswith(strip_prefix)]
    left_out = []
    if any(name == "n_averaged" for name, _ in named) and len(named) > 1:
        rest = [(name, tensor) for name, tensor in named if name != "n_averaged"]
        if all(name.startswith("module.") for name, _ in rest):
            named, left_out = rest, [("n_averaged", "a counter of torch's AveragedModel, not a weight")]
    stripped = True
    while named and stripped:
        stripped = False
        for prefix in _AUTOMATIC_PREFIXES:
            if all(name.startswith(prefix) and name != prefix for name, _ in named):
                named, stripped = [(name[len(prefix) :], tensor) for name, tensor in named], True
    return named, left_out


def _finish(
    checkpoint: Checkpoint, key: KeyPath, named: list[tuple[str, int]], left_out: list[tuple[str, str]]
) -> Selection:
    """Tell tied names and tensors that cannot be served from the rest."""
    first: dict[int, str] = {}
    taken: set[str] = set()
    tensors, aliases = [], {}
    for name, index in named:
        record = checkpoint.tensors[index]
        if not name or name in taken:
            left_out.append((name, "two tensors would have this name"))
        elif not record.readable:
            left_out.append((name, f"{record.kind} tensors travel only as bytes of their file"))
        elif index in first:
            aliases[name] = first[index]
        else:
            first[index] = name
            tensors.append(ModelTensor(name, index))
        taken.add(name)
    return Selection(key, tuple(tensors), aliases, tuple(left_out))
