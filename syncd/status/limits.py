"""The bounds of the status endpoint: bytes, seconds, connections, streams."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """connections: at a time, answered ones; beyond twice as many they are closed unseen. body: bytes of a request's.
    head_s, body_s: for a request's head and body to arrive. answer_s, act_s: for an answer to a question, a command.
    streams, stream_s: how many, and how long each. stall_s: a client that takes nothing for so long is cut off.
    heartbeat_s: between two signs of life on a still stream.
    """

    connections: int = 64
    body: int = 4096
    head_s: float = 10.0
    body_s: float = 5.0
    answer_s: float = 5.0
    act_s: float = 75.0
    streams: int = 8
    stream_s: float = 3600.0
    stall_s: float = 15.0
    heartbeat_s: float = 15.0
