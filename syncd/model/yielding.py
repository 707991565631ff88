"""Python work beside an application's calls: done in small steps, with the GIL given away between them.

A thread that runs Python without pause makes every other one wait 5 ms for each step of its own, and a forward pass has
hundreds of steps. What takes 20 ms in one go would cost a call in flight 20 ms; in small steps it costs next to none.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, TypeVar

from torch import nn

T = TypeVar("T")

# Long enough for a waiting thread to wake up and take the GIL; sleep(0) takes it back before anyone has woken.
_PAUSE_S: Final = 50e-6
_STEPS: Final = 4


def in_steps(items: Iterable[T], each: int = _STEPS) -> Iterator[T]:
    """`items`, giving the GIL away after every `each` of them."""
    for position, item in enumerate(items, 1):
        yield item
        if position % each == 0:
            time.sleep(_PAUSE_S)


def copy_in_steps(module: nn.Module, memo: Mapping[int, Any]) -> nn.Module:
    """`copy.deepcopy(module, memo)`, submodule by submodule."""
    copied = dict(memo)
    # Children first: a parent then finds them copied.
    for each in in_steps(reversed(list(module.modules()))):
        copy.deepcopy(each, copied)
    made: nn.Module = copied[id(module)]
    return made


def empty_in_steps(module: nn.Module) -> None:
    """Free the tensors of a module that nobody uses any more: giving memory back holds the GIL too."""
    for each in in_steps(list(module.modules())):
        each._parameters.clear()
        each._buffers.clear()
