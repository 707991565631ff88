"""The server's own `/metrics`: counts and times of requests, by model and outcome."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from syncd.predictor.v2.models import ServedModel

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """What a server counts; `outcome` is `ok` or a refusal's code, `model` one that is served or `unknown`."""

    def __init__(self, models: Sequence[ServedModel], waiting: Callable[[], int]) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.requests = Counter(
            "syncd_serve_requests", "inference requests", ["model", "outcome"], registry=self.registry
        )
        self.seconds = Histogram(
            "syncd_serve_request_seconds",
            "from the first byte of a request to its answer",
            ["model"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.queue = Histogram(
            "syncd_serve_queue_seconds",
            "waiting for a thread",
            ["model"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.predict = Histogram(
            "syncd_serve_predict_seconds",
            "the model itself",
            ["model"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.received = Counter(
            "syncd_serve_received_bytes", "bodies of inference requests", ["model"], registry=self.registry
        )
        self.registry.register(_Now(models, waiting))

    def render(self) -> bytes:
        """Prometheus' text."""
        return generate_latest(self.registry)


class _Now(Collector):
    """What is so at the moment of the scrape."""

    def __init__(self, models: Sequence[ServedModel], waiting: Callable[[], int]) -> None:
        self._models = models
        self._waiting = waiting

    def collect(self) -> Iterator[Metric]:
        versions = GaugeMetricFamily(
            "syncd_serve_version_number", "the version that answers", labels=["model"]
        )
        ready = GaugeMetricFamily("syncd_serve_ready_ratio", "1: a version answers", labels=["model"])
        for model in self._models:
            version = model.version
            ready.add_metric([model.name], float(version is not None))
            if version is not None:
                versions.add_metric([model.name], float(version))
        yield versions
        yield ready
        yield GaugeMetricFamily(
            "syncd_serve_waiting_requests", "in the queue or being answered", value=float(self._waiting())
        )
