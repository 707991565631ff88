"""An open-loop client in the predictor's own process: `python -m tests.support.open_loop NODE MODEL ANSWERS SHARE OUT`.

Four threads call at fixed times, whether or not the last answer is there: a latency counts from the time at which the
call was due. The rate is SHARE of what this machine, as busy as it is, answers when called without pause. Every answer
is checked against its version. Prints one line, with the rate, when it serves; at the end of standard input it writes
OUT: rows of (due, ended, good) on CLOCK_MONOTONIC.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from syncd.predictor import Predictor, open_predictor
from tests.support.preferred import be_preferred

THREADS = 4
TOLERANCE = 1e-3


class Perceptron(nn.Module):
    """16.8 MB of weights in four layers; a call takes about a millisecond."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(4)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layers(images)
        return out


def call_on_time(
    number: int,
    rate: float,
    stop: threading.Event,
    predictor: Predictor,
    answers: dict[str, torch.Tensor],
    rows: list[tuple[float, float, float]],
) -> None:
    """Call at start + (number + k · THREADS) ÷ rate for k = 0, 1, …"""
    images = answers["input"]
    due = time.monotonic() + number / rate
    while not stop.is_set():
        wait = due - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        try:
            with predictor.pinned() as model:
                output = model(images)
            ended = time.monotonic()
            good = torch.allclose(output, answers[f"expected.{model.version}"], TOLERANCE, TOLERANCE)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a failed call
            print(error, file=sys.stderr)
            ended, good = time.monotonic(), False
        rows.append((due, ended, float(good)))
        due += THREADS / rate


def calls_a_second(predictor: Predictor, images: torch.Tensor, seconds: float = 3.0) -> float:
    """How many calls a second one thread gets through."""
    began, calls = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        predictor(images)
        calls += 1
    return calls / (time.monotonic() - began)


def main() -> None:
    """Serve, call, write what was seen."""
    node, model, answers_path, share, out = sys.argv[1:6]
    be_preferred()
    torch.set_num_threads(1)
    answers = load_file(answers_path)
    predictor = open_predictor(model, node=Path(node), build=Perceptron, wait="60s")
    rate = float(share) * calls_a_second(predictor, answers["input"])
    stop = threading.Event()
    rows: list[list[tuple[float, float, float]]] = [[] for _ in range(THREADS)]
    threads = [
        threading.Thread(target=call_on_time, args=(number, rate, stop, predictor, answers, rows[number]))
        for number in range(THREADS)
    ]
    for thread in threads:
        thread.start()
    print(json.dumps({"serves": predictor.version, "rate": round(rate, 1)}), flush=True)
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()
    predictor.close()
    np.save(out, np.array([row for each in rows for row in each]))


if __name__ == "__main__":
    main()
