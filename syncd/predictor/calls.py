"""Figures of the calls that one version answered, kept without a lock on the way of a call."""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import dataclass
from typing import Any, Final

import torch

from syncd.model.finite import all_finite
from syncd.model.golden import flatten_outputs

RECENT: Final = 1024
_MAX_PENDING: Final = 256


@dataclass(frozen=True)
class CallFigures:
    """What a report says: counts since the version began to serve here, latencies of the last 1,024 calls in ms."""

    predictions: int
    errors: int
    nonfinite: int
    p50_ms: float | None
    p99_ms: float | None


class Calls:
    """Counts calls of one version; `answered` and `raised` from any thread, `figures` from one thread at a time."""

    def __init__(self) -> None:
        self._counter = itertools.count()  # next() is one step under the GIL
        self._reads = 0
        self._recent = [0.0] * RECENT
        self._lock = threading.Lock()  # for what is rare
        self._errors = 0
        self._nonfinite = 0
        self._pending: list[torch.Tensor] = []

    def answered(self, started: float, args: tuple[Any, ...], output: Any) -> None:
        """Note a call that began at `time.perf_counter()` = `started` and gave `output`.

        NaN or infinity in an answer counts unless it came in with `args`: that is not the version's fault.
        """
        took = time.perf_counter() - started
        self._recent[next(self._counter) % RECENT] = took
        for tensor in flatten_outputs(output):
            if tensor.device.type == "cpu":
                if not all_finite(tensor):
                    if all(all_finite(each) for each in flatten_outputs(args)):
                        self._count_nonfinite()
                    return
            elif tensor.is_floating_point() and len(self._pending) < _MAX_PENDING:
                # Asking an accelerator waits for it: `figures` asks later, from its own thread.
                self._pending.append(torch.isfinite(tensor).all())

    def raised(self) -> None:
        """Note a call that raised."""
        with self._lock:
            self._errors += 1

    def troubles(self) -> int:
        """Errors and non-finite answers so far, cheaply: news that a report should not wait for."""
        pending, self._pending = self._pending, []
        for finite in pending:
            if not finite.item():
                self._count_nonfinite()
        return self._errors + self._nonfinite

    def figures(self) -> CallFigures:
        """The figures now."""
        self.troubles()
        # Reading a counter advances it: take back what earlier readings have added.
        answered = next(self._counter) - self._reads
        self._reads += 1
        recent = sorted(took for took in self._recent if took > 0.0)
        return CallFigures(
            predictions=answered,
            errors=self._errors,
            nonfinite=self._nonfinite,
            p50_ms=_milliseconds(recent, 0.50),
            p99_ms=_milliseconds(recent, 0.99),
        )

    def _count_nonfinite(self) -> None:
        with self._lock:
            self._nonfinite += 1


def _milliseconds(ordered: list[float], share: float) -> float | None:
    if not ordered:
        return None
    return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3)
