"""Reading the counters of model servers, up to a real one behind the real API."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa
from pydantic import ValidationError
from sqlalchemy.engine import Engine

from billing.errors import CountersError
from billing.ingest import ingest
from billing.ledger import reading, writing
from billing.reconciliation.counters import REQUESTS, Scrape, read_counters, sample, scrape, store
from billing.reconciliation.metered import Served, reconcile_day
from billing.reconciliation.text import share
from billing.settings import BillingSettings
from billing.tables import counter_samples
from serving.app import SERVICES, build_app
from serving.services import make_services
from serving.settings import ServingSettings
from tallybook.calendar import billing_day, day_interval
from tallybook.processes import free_port
from tests.apis import MODEL, USER
from tests.billing.factories import DAY, ZONE
from tests.modelservers import Stubs, running_server, text, wait_until

TENSORFLOW_SERVING = r"""# TYPE :tensorflow:serving:request_count counter
:tensorflow:serving:request_count{model_name="sentiment",status="OK"} 9
:tensorflow:serving:request_count{model_name="sentiment",status="INVALID_ARGUMENT"} 4
:tensorflow:serving:request_count{model_name="odd \"name\"",status="OK"} 1
# TYPE :tensorflow:serving:request_latency histogram
:tensorflow:serving:request_latency_bucket{model_name="sentiment",API="Predict",entrypoint="GRPC",le="+Inf"} 9
"""
VLLM = """# HELP vllm:prompt_tokens_total Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="qwen"} 3.000000001e+09
vllm:prompt_tokens_total{engine="1",model_name="qwen"} 5.0
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="qwen"} 8.0
# TYPE vllm:request_success_total counter
vllm:request_success_total{engine="0",finished_reason="stop",model_name="qwen"} 6.0
vllm:request_success_total{engine="0",finished_reason="length",model_name="qwen"} 1.0
vllm:request_success_total{engine="0",finished_reason="abort",model_name="qwen"} 2.0
# TYPE vllm:request_success_created gauge
vllm:request_success_created{engine="0",finished_reason="stop",model_name="qwen"} 1.7e+09
"""
SGLANG = """# TYPE sglang:prompt_tokens_total counter
sglang:prompt_tokens_total{model_name="qwen"} 1.282888e+06
# TYPE sglang:generation_tokens_total counter
sglang:generation_tokens_total{model_name="qwen"} 337.0
# TYPE sglang:num_requests_total counter
sglang:num_requests_total{model_name="qwen"} 4.0
"""


@pytest.mark.parametrize(
    ("page", "values"),
    [
        (TENSORFLOW_SERVING, {("sentiment", "requests"): 9, ('odd "name"', "requests"): 1}),
        (
            VLLM,
            {
                ("qwen", "requests"): 7,
                ("qwen", "prompt_tokens"): 3_000_000_006,
                ("qwen", "completion_tokens"): 8,
            },
        ),
        (
            SGLANG,
            {
                ("qwen", "requests"): 4,
                ("qwen", "prompt_tokens"): 1_282_888,
                ("qwen", "completion_tokens"): 337,
            },
        ),
        ("", {}),
    ],
    ids=["tensorflow serving", "vllm", "sglang", "nothing yet"],
)
def test_the_counters_of_each_server_are_read(page: str, values: dict[tuple[str, str], int]) -> None:
    assert read_counters(page) == values


@pytest.mark.parametrize("value", ["NaN", "-1", "+Inf", "many"])
def test_what_is_no_count_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match=r"many|_total is"):
        read_counters(f'sglang:num_requests_total{{model_name="qwen"}} {value}\n')


def test_requests_past_the_api_are_the_unmetered_share(
    ledger: Engine, models_dir: Path, tmp_path: Path
) -> None:
    with running_server(models_dir) as server:
        settings = ServingSettings(
            models_dir=models_dir,
            journal_dir=tmp_path / "journal",
            access_url=f"sqlite:///{tmp_path / 'access.db'}",
            model_server_address=server.address,
            version_poll_seconds=0.02,
        )
        app = build_app(make_services(settings))
        client = app.test_client()
        wait_until(lambda: client.get("/readyz").status_code == 200)
        sample(ledger, [server.counters_url])
        for _ in range(6):
            assert client.post("/analyze", json={"text": "hotel"}, headers=USER).status_code == 200
        with Stubs(server.address) as stubs:
            for _ in range(2):
                stubs.predict(text(2, 9))
        sample(ledger, [server.counters_url])
        app.extensions[SERVICES].close()
    ingest(ledger, settings.journal_dir, ZONE)
    with reading(ledger) as connection:
        found = reconcile_day(connection, billing_day(datetime.now(timezone.utc), ZONE), ZONE)
    (day,) = found.days
    assert day.model == MODEL
    assert day.requests.metered == 6
    assert day.requests.served is not None
    assert day.requests.served.least == 8
    assert share(day.requests.metered, day.requests.served) == "≥ 25.0%"
    assert (day.tokens.metered > 0, day.tokens.served) == (True, None)


def test_a_server_that_does_not_answer_is_told_after_the_others_are_stored(
    sqlite_ledger: Engine, models_dir: Path
) -> None:
    silent = f"http://127.0.0.1:{free_port()}/metrics"
    with running_server(models_dir) as server, pytest.raises(CountersError, match=silent) as failed:
        sample(sqlite_ledger, [silent, server.counters_url])
    assert failed.value.code == "counters_unavailable"
    with reading(sqlite_ledger) as connection:
        query = sa.select(counter_samples.c.server, counter_samples.c.value)
        assert set(connection.execute(query)) == {(silent, 0), (server.counters_url, 1)}


def test_a_page_that_is_not_there_is_an_error(models_dir: Path) -> None:
    with running_server(models_dir) as server:
        seen = scrape(f"{server.counters_url}/other")
    assert seen.error == "HTTPError: HTTP Error 404: Not Found"
    assert seen.values == {}


def test_counters_are_read_over_the_web_only() -> None:
    with pytest.raises(ValidationError, match="no http:// or https:// address"):
        BillingSettings(model_counters=("file:///etc/hostname",))


def test_of_two_looks_at_once_only_the_first_to_end_is_kept(ledger: Engine) -> None:
    start = datetime(2026, 11, 21, tzinfo=timezone.utc)
    seconds = [start + timedelta(seconds=n) for n in range(4)]
    key = ("m", "requests")
    with writing(ledger) as connection:
        assert store(connection, Scrape("http://a", seconds[0], seconds[1], {key: 101}))
        assert not store(connection, Scrape("http://a", seconds[0], seconds[2], {key: 100}))
        assert store(connection, Scrape("http://b", seconds[0], seconds[2], {key: 3}))
        assert store(connection, Scrape("http://a", seconds[2], seconds[3], {key: 102}))
        query = sa.select(counter_samples.c.value).where(counter_samples.c.model == "m")
        assert sorted(connection.scalars(query)) == [3, 101, 102]


def test_a_server_that_nobody_looked_at_all_day_is_not_forgotten(ledger: Engine) -> None:
    start, end = day_interval(DAY, ZONE)
    hour = timedelta(hours=1)
    told = {
        # Of two replicas, one was left out of the day's samples; a third came only after it.
        "http://a": [(start, 5), (start + hour, 12), (end, 25)],
        "http://b": [(start - hour, 100), (end + hour, 140)],
        "http://c": [(end + 2 * hour, 1_000)],
    }
    with writing(ledger) as connection:
        for server, samples in told.items():
            for at, value in samples:
                assert store(connection, Scrape(server, at, at, {("m", REQUESTS): value}))
        found = reconcile_day(connection, DAY, ZONE)
    assert [row.requests.served for row in found.days] == [Served(20, 60)]
    assert found.hours[0].requests.served == Served(7, 47)
