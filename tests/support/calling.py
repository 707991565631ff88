"""A process that predicts without pause and checks every answer: `python -m tests.support.calling NODE MODEL ANSWERS`.

ANSWERS is a safetensors file with `input` and `expected.N` for each version N. Prints one line when it serves; at the
end of standard input it stops and prints what it saw: calls, failed calls, wrong answers, and for each version the time
(CLOCK_MONOTONIC, shared by all processes) at which the first call that met it began.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from syncd.predictor import Predictor, open_predictor
from tests.support.preferred import be_preferred

THREADS = 4
TOLERANCE = 1e-4


@dataclass
class Seen:
    """What one thread saw."""

    calls: int = 0
    failed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    first: dict[int, float] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)


def call_until(
    stop: threading.Event, predictor: Predictor, answers: dict[str, torch.Tensor], seen: Seen
) -> None:
    """Call, by turns pinned and plain, and check each answer against what its version must give."""
    images = answers["input"]
    while not stop.is_set():
        began = time.monotonic()
        try:
            if seen.calls % 2:
                with predictor.pinned() as model:
                    allowed, output = {model.version}, model(images)
            else:
                before = predictor.version
                output = predictor(images)
                allowed = {before, predictor.version}
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a failed call
            seen.failed.append(f"{type(error).__name__}: {error}")
            continue
        seen.calls += 1
        near = {v for v in allowed if torch.allclose(output, answers[f"expected.{v}"], TOLERANCE, TOLERANCE)}
        if not near:
            seen.wrong.append(f"none of versions {sorted(allowed)} answers like this")
            continue
        version = max(near)
        if version not in seen.first:
            seen.first[version] = began
            seen.order.append(version)


def main() -> None:
    """Serve, call, report."""
    node, model, answers_path = sys.argv[1:4]
    be_preferred()
    torch.set_num_threads(1)
    answers = load_file(answers_path)
    predictor = open_predictor(model, node=Path(node), wait="60s")
    stop = threading.Event()
    seen = [Seen() for _ in range(THREADS)]
    threads = [threading.Thread(target=call_until, args=(stop, predictor, answers, each)) for each in seen]
    for thread in threads:
        thread.start()
    print(json.dumps({"serves": predictor.version}), flush=True)
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()
    predictor.close()
    print(json.dumps(_summary(seen)), flush=True)


def _summary(seen: list[Seen]) -> dict[str, Any]:
    first: dict[int, float] = {}
    for each in seen:
        for version, began in each.first.items():
            first[version] = min(began, first.get(version, began))
    return {
        "calls": sum(each.calls for each in seen),
        "failed": [text for each in seen for text in each.failed],
        "wrong": [text for each in seen for text in each.wrong],
        "first": first,
        "backwards": [each.order for each in seen if each.order != sorted(each.order)],
    }


if __name__ == "__main__":
    main()
