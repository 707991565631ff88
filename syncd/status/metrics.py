"""The numbers of `/metrics`, made from the status document at each scrape.

Names are `syncd_<room>_<noun>_<unit>`; labels come from small closed sets (model, channel, state, role).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

STATES = ("IDLE", "WAITING", "FETCHING", "INSTALLED", "GATING", "PROBATION")
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
DAY_S = 86400.0


def render(document: dict[str, Any]) -> tuple[bytes, str]:
    """Prometheus' text and its content type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(document))
    return generate_latest(registry), CONTENT_TYPE


def _seconds(instant: Any) -> float | None:
    return datetime.fromisoformat(instant).timestamp() if isinstance(instant, str) else instant


class _Collector:
    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document

    def collect(self) -> Iterator[Metric]:
        """Every metric family."""
        yield from _daemon(self._document)
        yield from _store(self._document.get("store") or {})
        yield from _publisher(self._document.get("published") or [])
        yield from _edge(self._document.get("models") or [])
        yield from _predictor(self._document.get("models") or [])


def _gauge(name: str, text: str, labels: list[str], rows: list[tuple[list[str], Any]]) -> Metric:
    """A gauge of the rows whose value is known."""
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, value in rows:
        if value is not None:
            family.add_metric(values, float(value))
    return family


def _daemon(document: dict[str, Any]) -> Iterator[Metric]:
    version = str(document.get("version"))
    yield _gauge("syncd_daemon_build_info", "which syncd runs", ["version"], [([version], 1)])
    started = _seconds(document.get("started_at"))
    yield _gauge("syncd_daemon_start_timestamp_seconds", "when it started", [], [([], started)])


def _store(store: dict[str, Any]) -> Iterator[Metric]:
    yield _gauge(
        "syncd_store_reachable_ratio", "1: the last request was answered", [], [([], store.get("reachable"))]
    )
    contact = _seconds(store.get("last_contact"))
    yield _gauge("syncd_store_last_contact_timestamp_seconds", "its last answer", [], [([], contact)])
    skew = store.get("clock_skew_s")
    yield _gauge("syncd_store_clock_skew_seconds", "its clock minus ours", [], [([], skew)])


def _publisher(published: list[dict[str, Any]]) -> Iterator[Metric]:
    def rows(key: str) -> list[tuple[list[str], Any]]:
        return [([each["model"]], each.get(key)) for each in published]

    model = ["model"]
    yield _gauge(
        "syncd_publisher_last_version_number", "newest version published", model, rows("last_version")
    )
    yield _gauge("syncd_publisher_pending_checkpoints", "found and not released yet", model, rows("pending"))
    failing = [([each["model"]], 1 if each.get("last_error") else 0) for each in published]
    yield _gauge("syncd_publisher_failing_ratio", "1: the last attempt failed", model, failing)


def _edge(models: list[dict[str, Any]]) -> Iterator[Metric]:
    names = ["model", "channel"]

    def rows(key: str) -> list[tuple[list[str], Any]]:
        return [([each["model"], each["channel"]], each.get(key)) for each in models]

    yield _gauge("syncd_edge_serving_version_number", "the version that answers", names, rows("serving"))
    yield _gauge("syncd_edge_available_version_number", "what the channel names", names, rows("available"))
    states = [
        ([each["model"], each["channel"], state], float(each.get("state") == state))
        for each in models
        for state in STATES
    ]
    yield _gauge("syncd_edge_state_ratio", "1: the model is in this state", [*names, "state"], states)
    given_up = [([each["model"], each["channel"]], len(each.get("quarantined") or [])) for each in models]
    yield _gauge("syncd_edge_quarantined_versions", "versions given up on", names, given_up)
    for key, text in (("last_poll", "last answered poll"), ("last_change", "last swap")):
        instants = [(labels, _seconds(value)) for labels, value in rows(key)]
        yield _gauge(f"syncd_edge_{key}_timestamp_seconds", text, names, instants)
    wire = CounterMetricFamily("syncd_edge_wire_bytes", "bytes received from the store", labels=names)
    for labels, value in rows("wire_bytes"):
        wire.add_metric(labels, float(value or 0))
    yield wire
    left = [
        ([each["model"], each["channel"], role], days * DAY_S)
        for each in models
        for role, days in (each.get("trust") or {}).items()
        if days is not None
    ]
    yield _gauge("syncd_trust_expiry_left_seconds", "until a signing role expires", [*names, "role"], left)


def _predictor(models: list[dict[str, Any]]) -> Iterator[Metric]:
    def rows(total: Any) -> list[tuple[list[str], Any]]:
        return [([each["model"]], total(each.get("followers") or [])) for each in models]

    model = ["model"]
    yield _gauge("syncd_predictor_followers", "processes that follow", model, rows(len))
    for key in ("predictions", "errors"):
        counts = rows(lambda all_, key=key: sum(one.get(key) or 0 for one in all_))
        yield _gauge(f"syncd_predictor_{key}", f"{key} of the followers alive now", model, counts)
    slowest = rows(
        lambda all_: max(
            (one["p99_ms"] / 1000 for one in all_ if one.get("p99_ms") is not None), default=None
        )
    )
    yield _gauge("syncd_predictor_slowest_p99_seconds", "the slowest follower's p99 latency", model, slowest)
