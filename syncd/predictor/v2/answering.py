"""One inference request from its bytes to the bytes of its answer; the threads that do it, and their queue."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import torch

from syncd.model.golden import flatten_outputs
from syncd.predictor.v2.encodings import compress, decompress, wanted_encoding
from syncd.predictor.v2.models import ServedModel, Took
from syncd.predictor.v2.refusals import Refusal, bad_request, busy, late
from syncd.predictor.v2.tensors import Inference, read_inference, write_answer
from syncd.predictor.versions import Serving

T = TypeVar("T")
log = logging.getLogger("syncd.serve")

HEADER_LENGTH: Final = "inference-header-content-length"
_MAX_TEXT: Final = 500


@dataclass(frozen=True)
class Question:
    """A request as it came: `pieces` of the body, what its headers say, the version that it demands."""

    model: ServedModel
    version: str | None
    pieces: Sequence[bytes]
    header_length: str | None
    content_encoding: str
    accept_encoding: str
    max_body: int
    asked: float  # time.perf_counter() when the body was there


@dataclass(frozen=True)
class Answered:
    """An answer: the version that gave it, its body and headers, and how long the prediction and the queue took (s)."""

    body: bytes
    headers: dict[str, str]
    queue_s: float
    predict_s: float


def answer(question: Question) -> Answered:
    """Decode, predict, encode.

    Raises:
        Refusal: what the client is told.
    """
    began = time.perf_counter_ns()
    took = Took(queue=max(0, began - int(question.asked * 1e9)))
    model = question.model
    serving = model.serving(question.version)
    try:
        request = _understood(question, serving)
        predicted = time.perf_counter_ns()
        took.compute_input = predicted - began
        outputs = _predict(serving, request)
        written = time.perf_counter_ns()
        took.compute_infer = written - predicted
        body, headers = _written(question, serving, request, outputs)
        took.compute_output = time.perf_counter_ns() - written
    except Refusal:
        model.statistics.failed(serving.version, time.perf_counter_ns() - began)
        raise
    first = request.tensors[0]
    batch = first.shape[0] if first.dim() else 1
    model.statistics.answered(serving.version, took, batch, int(time.time() * 1000))
    return Answered(body, headers, took.queue / 1e9, took.compute_infer / 1e9)


def _understood(question: Question, serving: Serving) -> Inference:
    pieces = question.pieces
    if question.content_encoding:
        pieces = [decompress(b"".join(pieces), question.content_encoding, question.max_body)]
    length: int | None = None
    if question.header_length is not None:
        text = question.header_length.strip()
        if not (text.isascii() and text.isdigit() and len(text) < 16):
            raise bad_request(f"Inference-Header-Content-Length is {text[:32]!r}, not a number of bytes")
        length = int(text)
    return read_inference(pieces, length, question.model.inputs(serving))


def _predict(serving: Serving, request: Inference) -> list[torch.Tensor]:
    try:
        output = serving.predict(request.tensors, {})
        outputs = [each.detach().cpu() for each in flatten_outputs(output)]
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:_MAX_TEXT]
        raise Refusal(500, "failed", f"the model raised {text}") from error
    if not outputs:
        raise Refusal(500, "failed", f"the model answered with {type(output).__name__}, not with tensors")
    return outputs


def _written(
    question: Question, serving: Serving, request: Inference, outputs: list[torch.Tensor]
) -> tuple[bytes, dict[str, str]]:
    head: dict[str, Any] = {"model_name": question.model.name, "model_version": str(serving.version)}
    if request.id is not None:
        head["id"] = request.id
    names = question.model.output_names(len(outputs))
    body, json_length = write_answer(head, request, names, outputs)
    headers = {"content-type": "application/json"}
    if json_length is not None:
        headers = {"content-type": "application/octet-stream", HEADER_LENGTH: str(json_length)}
    encoding = wanted_encoding(question.accept_encoding, len(body))
    if encoding is not None:
        body = compress(body, encoding)
        headers["content-encoding"] = encoding
    return body, headers


class Workers:
    """A few threads that predict, and a bounded queue before them."""

    def __init__(self, threads: int, queue: int) -> None:
        self.threads = threads
        self.queue = queue
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="syncd-predict")
        self._lock = threading.Lock()
        self._taken = 0

    @property
    def taken(self) -> int:
        """Requests that wait or are being answered."""
        return self._taken

    def must_have_room(self) -> None:
        """Raises Refusal, 429, where the queue is full."""
        if self._taken >= self.threads + self.queue:
            raise busy(f"{self.queue} requests wait already: try again, or ask less often")

    async def run(self, work: Callable[[], T], within_s: float) -> T:
        """`work()` in one of the threads; what is still queued when time is up is not done at all.

        Raises:
            Refusal: 429 where the queue is full, 503 where time is up.
        """
        self.must_have_room()
        with self._lock:
            self._taken += 1
        waiting = self._pool.submit(work)
        waiting.add_done_callback(self._gone)
        try:
            async with asyncio.timeout(within_s):
                return await asyncio.wrap_future(waiting)
        except TimeoutError as error:
            raise late(f"no answer within {within_s:.1f} s") from error

    def _gone(self, _: object) -> None:
        with self._lock:
            self._taken -= 1

    def close(self) -> None:
        """No further work; what runs ends by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)
