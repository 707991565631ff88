"""Figures of calls: exact under many threads, without a lock on their way."""

from __future__ import annotations

import threading
import time

import torch

from syncd.predictor.calls import RECENT, Calls


def test_no_call_of_many_threads_is_lost_while_figures_are_read() -> None:
    calls = Calls()
    output = torch.ones(3)

    def call() -> None:
        for number in range(2000):
            if number % 100 == 0:
                calls.raised()
            else:
                calls.answered(time.perf_counter() - 0.001, (), output)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert calls.figures().predictions <= 4 * 1980
    figures = calls.figures()
    assert (figures.predictions, figures.errors, figures.nonfinite) == (4 * 1980, 4 * 20, 0)
    assert figures.p50_ms is not None
    assert figures.p50_ms >= 1.0


def test_latencies_are_of_the_recent_calls() -> None:
    calls = Calls()
    assert calls.figures().p99_ms is None
    for _ in range(RECENT):
        calls.answered(time.perf_counter() - 10.0, (), None)
    for _ in range(RECENT):
        calls.answered(time.perf_counter() - 0.5, (), None)
    figures = calls.figures()
    assert figures.p50_ms is not None
    assert 500 <= figures.p50_ms < 1000


def test_answers_that_are_not_finite_count_once_unless_they_came_in_so() -> None:
    calls = Calls()
    bad = torch.tensor([1.0, float("nan")])
    calls.answered(0.0, (torch.ones(1),), {"one": bad, "other": [bad, bad]})
    calls.answered(0.0, (bad,), bad)
    calls.answered(0.0, (), torch.tensor([1, 2]))
    calls.answered(0.0, (), "no tensor")
    calls.answered(0.0, (), torch.tensor([float("inf")], dtype=torch.bfloat16))
    assert calls.figures().nonfinite == 2
    assert calls.troubles() == 2
