"""The predictor room: one model answering in the application's own process, swapped without a dropped prediction.

in      the node folder (`current`, `next`, installed versions) · calls from any number of threads
out     answers, each of one whole version · a vote on every version offered · a report of calls, errors, latencies
never   takes a lock on the way of a call · decodes, hashes or downloads · reads config.toml · uses the network
crash   the lock of the follower goes with the process; the daemon sees it and asks the others
read    predictor.py → versions.py (loading one) → follow.py (the thread) → calls.py (figures)
"""

from __future__ import annotations

from syncd.predictor.predictor import Pinned, Predictor, open_predictor

__all__ = ["Pinned", "Predictor", "open_predictor"]
