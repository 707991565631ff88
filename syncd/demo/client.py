"""The demo's application: calls `predict` without a pause and counts every answer.

    python -m syncd.demo.client NODE_FOLDER MODEL

An open loop: a call is due every `PERIOD` seconds and its latency counts from then, so that a pause cannot hide.
Prints one JSON line four times a second, and a last one when it is told to stop (SIGTERM).
"""

from __future__ import annotations

import json
import signal
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import torch

import syncd
from syncd.demo.digits import load_digits

PERIOD = 0.1
BATCH = 2
NEAR_SWAP = 0.5


@dataclass
class Tally:
    """What the application has seen; latencies in seconds, times as time.time()."""

    total: int = 0
    failed: int = 0
    errors: list[str] = field(default_factory=list)
    latencies: list[tuple[float, float]] = field(default_factory=list)
    swaps: list[float] = field(default_factory=list)
    versions: dict[int, dict[str, float]] = field(default_factory=dict)

    def answered(self, due: float, version: int, right: int, asked: int) -> None:
        """Count one good answer of `version`."""
        now = time.time()
        self.total += 1
        self.latencies.append((now, now - due))
        if version not in self.versions:
            self.versions[version] = {"first": now, "asked": 0, "right": 0}
            self.swaps.append(now)
        seen = self.versions[version]
        seen["asked"] += asked
        seen["right"] += right

    def failure(self, error: Exception) -> None:
        """Count one call that raised or answered nonsense."""
        self.total += 1
        self.failed += 1
        self.errors = [*self.errors[-4:], f"{type(error).__name__}: {error}"[:300]]

    def report(self) -> dict[str, Any]:
        """The tally as JSON; milliseconds."""
        steady = sorted(latency for _, latency in self.latencies)
        near = sorted(
            latency
            for at, latency in self.latencies
            if any(abs(at - swap) < NEAR_SWAP for swap in self.swaps[1:])
        )
        return {
            "total": self.total,
            "failed": self.failed,
            "errors": self.errors,
            "p50_ms": _quantile_ms(steady, 0.5),
            "p99_ms": _quantile_ms(steady, 0.99),
            "p99_swap_ms": _quantile_ms(near, 0.99),
            "versions": {str(version): seen for version, seen in self.versions.items()},
        }


def _quantile_ms(ordered: list[float], quantile: float) -> float | None:
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * quantile))] * 1000, 2) if ordered else None


def run(node: str, model: str) -> None:
    """Call the predictor until SIGTERM."""
    torch.set_num_threads(1)
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stop.append(number))
    data = load_digits()
    tally = Tally()
    with syncd.open_predictor(model, node=node, wait="120s") as predictor, torch.inference_mode():
        due = told = time.time()
        at = 0
        while not stop:
            time.sleep(max(0.0, due - time.time()))
            images, labels = data.test_images[at : at + BATCH], data.test_labels[at : at + BATCH]
            at = (at + BATCH) % (len(data.test_images) - BATCH)
            try:
                with predictor.pinned() as pinned:
                    answer = pinned(images)
                    version = pinned.version
                if not bool(torch.isfinite(answer).all()):
                    raise ArithmeticError(f"version {version} answered with numbers that are not finite")
                tally.answered(due, version, int((answer.argmax(1) == labels).sum()), len(labels))
            except Exception as error:  # noqa: BLE001 - the application's edge: every failure is counted and shown
                tally.failure(error)
            due += PERIOD
            if time.time() - told > 0.25:
                told = time.time()
                _tell(tally)
    _tell(tally)


def _tell(tally: Tally) -> None:
    sys.stdout.write(json.dumps(tally.report()) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2])
