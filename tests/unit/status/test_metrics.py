"""The numbers of /metrics: names, labels, values, and what an unknown value does."""

from __future__ import annotations

import re

from prometheus_client.parser import text_string_to_metric_families

from syncd.status.document import MODEL, PUBLISHED, whole
from syncd.status.metrics import render

DOCUMENT = {
    "node": "n",
    "version": "0.1.0",
    "started_at": "2026-11-24T22:40:55+00:00",
    "store": {
        "url": "s3://x",
        "reachable": True,
        "last_contact": "2026-11-24T22:41:55+00:00",
        "clock_skew_s": -1.5,
    },
    "published": [
        whole(PUBLISHED, {"model": "a", "last_version": 7, "pending": 2, "last_error": {"code": "x"}})
    ],
    "models": [
        whole(
            MODEL,
            {
                "model": "b",
                "channel": "stable",
                "state": "GATING",
                "serving": 41,
                "available": 42,
                "quarantined": [{"version": 40, "reason": "nan"}],
                "wire_bytes": 1000,
                "trust": {"timestamp": 10.0, "root": None},
                "followers": [
                    {"id": "1", "predictions": 10, "errors": 1, "p99_ms": 20.0},
                    {"id": "2", "predictions": 5, "errors": 0, "p99_ms": None},
                ],
            },
        )
    ],
}


def samples(document: dict[str, object]) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = render(document)[0].decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_number_of_the_document_is_there() -> None:
    found = samples(DOCUMENT)
    edge = (("channel", "stable"), ("model", "b"))
    assert found["syncd_edge_serving_version_number", edge] == 41
    assert found["syncd_edge_available_version_number", edge] == 42
    assert found["syncd_edge_quarantined_versions", edge] == 1
    assert found["syncd_edge_wire_bytes_total", edge] == 1000
    assert found["syncd_edge_state_ratio", (*edge, ("state", "GATING"))] == 1
    assert found["syncd_edge_state_ratio", (*edge, ("state", "IDLE"))] == 0
    assert found["syncd_trust_expiry_left_seconds", (*edge, ("role", "timestamp"))] == 864000
    assert found["syncd_predictor_predictions", (("model", "b"),)] == 15
    assert found["syncd_predictor_slowest_p99_seconds", (("model", "b"),)] == 0.02
    assert found["syncd_publisher_failing_ratio", (("model", "a"),)] == 1
    assert found["syncd_publisher_pending_checkpoints", (("model", "a"),)] == 2
    assert found["syncd_store_clock_skew_seconds", ()] == -1.5
    assert found["syncd_store_reachable_ratio", ()] == 1


def test_names_follow_the_rule_and_labels_are_from_small_sets() -> None:
    for name, labels in samples(DOCUMENT):
        assert re.fullmatch(r"syncd_(daemon|store|publisher|edge|predictor|trust)_[a-z0-9_]+", name)
        assert {label for label, _ in labels} <= {"model", "channel", "state", "role", "version"}


def test_what_is_not_known_yet_has_no_sample() -> None:
    fresh = {"version": "0.1.0", "models": [whole(MODEL, {"model": "b", "channel": "stable"})], "store": {}}
    names = {name for name, _ in samples(fresh)}
    assert "syncd_edge_serving_version_number" not in names
    assert "syncd_store_reachable_ratio" not in names
    assert "syncd_edge_wire_bytes_total" in names
