"""Python work beside an application's calls: done in small steps, with the GIL given away between them.

A thread that runs Python without pause makes every other one wait 5 ms for each step of its own, and a forward pass has
hundreds of steps. What takes 20 ms in one go would cost a call in flight 20 ms; in small steps it costs next to none.
"""

from __future__ import annotations

import copy
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, TypeVar

from torch import nn

T = TypeVar("T")

# Long enough for a waiting thread to wake up and take the GIL; sleep(0) takes it back before anyone has woken.
_PAUSE_S: Final = 50e-6
_STEPS: Final = 8
_ATOMS: Final = frozenset({int, float, bool, str, bytes, type(None)})


def in_steps(items: Iterable[T], each: int = _STEPS) -> Iterator[T]:
    """`items`, giving the GIL away after every `each` of them."""
    for position, item in enumerate(items, 1):
        yield item
        if position % each == 0:
            time.sleep(_PAUSE_S)


def copy_in_steps(module: nn.Module, memo: Mapping[int, Any]) -> nn.Module:
    """What `copy.deepcopy(module, memo)` makes, ten times cheaper where the submodules are plain.

    deepcopy spends a quarter of a millisecond on each submodule, nearly all of it on empty dicts of hooks.
    """
    modules = list(module.modules())
    if not all(_copies_plainly(each) for each in modules):
        made: nn.Module = copy.deepcopy(module, dict(memo))
        return made
    copied: dict[int, Any] = {**memo, **{id(each): object.__new__(type(each)) for each in modules}}
    for each in in_steps(modules):
        copied[id(each)].__dict__.update({name: _copy(value, copied) for name, value in vars(each).items()})
    made = copied[id(module)]
    return made


def _copies_plainly(module: nn.Module) -> bool:
    """Whether a copy is a new object with copies of the attributes; torch's `__setstate__` mend old pickles alone."""
    kind = type(module)
    return (
        not hasattr(kind, "__deepcopy__")
        and kind.__reduce_ex__ is object.__reduce_ex__
        and kind.__getstate__ is object.__getstate__
        and kind.__setstate__.__module__.startswith("torch.nn.modules.")
    )


def _copy(value: Any, copied: dict[int, Any]) -> Any:
    if type(value) in _ATOMS:
        return value
    if (known := copied.get(id(value))) is not None:
        return known
    if type(value) in (dict, OrderedDict):
        return type(value)((key, _copy(each, copied)) for key, each in value.items())
    return copy.deepcopy(value, copied)


def empty_in_steps(module: nn.Module) -> None:
    """Free the tensors of a module that nobody uses any more: giving memory back holds the GIL too."""
    for each in in_steps(list(module.modules())):
        each._parameters.clear()
        each._buffers.clear()
