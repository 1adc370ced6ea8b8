"""What the model server counts, as Prometheus reads it."""

from __future__ import annotations

from pathlib import Path

import grpc
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.model_server.counters import Counters
from tests.modelservers import Stubs, running_server, text

NAME = "review-sentiment"


def samples(exposition: str) -> dict[tuple[str, ...], float]:
    """Value by name and label values; the parser adds `_total` to a counter's name."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
    }


def test_predictions_are_counted_by_model_and_status(models_dir: Path) -> None:
    with running_server(models_dir) as server, Stubs(server.address) as stubs:
        for _ in range(3):
            stubs.predict(text(2, 9))
        for name, version in ((NAME, 7), ("made-up", None)):
            with pytest.raises(grpc.RpcError):
                stubs.predict(text(2, 9), version, name)
        answer = httpx.get(server.counters_url)
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    found = samples(answer.text)
    assert found[":tensorflow:serving:request_count_total", NAME, "OK"] == 3
    assert found[":tensorflow:serving:request_count_total", NAME, "NOT_FOUND"] == 1
    assert found[":tensorflow:serving:request_latency_count", NAME, "Predict", "GRPC"] == 3
    assert not any("made-up" in key for key in found)


def test_a_latency_is_in_the_first_bucket_that_is_not_below_it() -> None:
    counters = Counters()
    for microseconds in (3, 10, 10.5, 18, 1e12):
        counters.count("m", "Predict", "GRPC", grpc.StatusCode.OK, microseconds / 1e6)
    found = samples(counters.exposition())
    below = {limit: found[":tensorflow:serving:request_latency_bucket", "m", "Predict", "GRPC", limit]
             for limit in ("10", "18", "32.4", "+Inf")}  # fmt: skip
    assert below == {"10": 2, "18": 4, "32.4": 4, "+Inf": 5}
    assert len([key for key in found if key[0].endswith("_bucket")]) == 34


def test_nothing_else_is_on_the_rest_port(models_dir: Path) -> None:
    with running_server(models_dir) as server:
        assert httpx.get(server.counters_url.replace("metrics", "other")).status_code == 404
