import os
from pathlib import Path
from typing import Any

import pytest

from serving import journal
from serving.errors import ModelUnavailableError
from tests.apis import MODEL, Api, StandIn, alter_card, export, running_app
from tests.engines import MODEL as ENGINE
from tests.engines import stand_in_engine, write_engines
from tests.modelservers import wait_until


@pytest.fixture
def api(tmp_path: Path) -> Any:
    with running_app(tmp_path) as running:
        yield running


def test_a_living_process_says_so_whatever_is_missing(tmp_path: Path) -> None:
    server = StandIn()
    server.failure = ModelUnavailableError("down")
    with running_app(tmp_path, server) as api:
        response = api.client.get("/healthz")
        assert (response.status_code, response.get_json()) == (200, {"status": "alive"})


def test_a_ready_api_names_the_version_that_answers(api: Api) -> None:
    response = api.client.get("/readyz")
    assert response.status_code == 200
    assert response.get_json() == {
        "status": "ready",
        "models": {"review-sentiment": "1"},
        "problems": {},
        "refused_versions": {},
    }


def test_readiness_follows_the_model_server_down_and_up(api: Api) -> None:
    api.server.failure = ModelUnavailableError("the model server can't be reached")
    wait_until(lambda: api.client.get("/readyz").status_code == 503)
    error = api.client.get("/readyz").get_json()["error"]
    assert error["code"] == "not_ready"
    assert "review-sentiment: the model server can't be reached" in error["message"]
    api.server.failure = None
    wait_until(lambda: api.client.get("/readyz").status_code == 200)


def test_readiness_follows_the_journal_down_and_up(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal, "RETRY_SECONDS", 0.02)
    with monkeypatch.context() as disk:
        disk.setattr(os, "fdatasync", fail)
        assert api.analyze().status_code == 503
        response = api.client.get("/readyz")
        assert response.status_code == 503
        assert "journal: " in response.get_json()["error"]["message"]
        assert "No space left" in response.get_json()["error"]["message"]
    wait_until(lambda: api.client.get("/readyz").status_code == 200)
    assert api.analyze().status_code == 200


def test_a_version_with_another_tokenizer_is_not_ready_and_says_why(tmp_path: Path) -> None:
    models_dir = tmp_path / "models"
    alter_card(export(models_dir, 1), tokenizer_fingerprint="0" * 64)
    with running_app(tmp_path, models_dir=models_dir) as api:
        response = api.client.get("/readyz")
        assert response.status_code == 503
        assert "fingerprint" in response.get_json()["error"]["message"]
        assert api.analyze().get_json()["error"]["code"] == "model_unavailable"


def test_a_refused_newer_version_is_shown_while_the_older_answers(tmp_path: Path) -> None:
    models_dir = tmp_path / "models"
    export(models_dir, 1)
    alter_card(export(models_dir, 2), labels=[])
    with running_app(tmp_path, StandIn(1, 2), models_dir=models_dir) as api:
        ready = api.client.get("/readyz").get_json()
        assert ready["models"] == {MODEL: "1"}
        assert "labels" in ready["refused_versions"][MODEL]["2"]
        assert api.analyze().get_json()["model_version"] == "1"


def test_a_gateway_with_engines_only_is_ready_as_long_as_one_takes_connections(tmp_path: Path) -> None:
    server = StandIn()
    server.failure = ModelUnavailableError("there is none")
    with stand_in_engine() as engine:
        file = write_engines(
            tmp_path,
            {"addresses": ["http://127.0.0.1:9/v1", engine.address]},
            {"model": "away", "addresses": ["http://127.0.0.1:9/v1"]},
        )
        with running_app(tmp_path, server, engines_file=file) as api:
            ready = api.client.get("/readyz")
            assert (ready.status_code, list(ready.get_json()["models"])) == (200, [ENGINE])
            assert ready.get_json()["problems"] == {
                MODEL: "there is none",
                "away": "no address of its engine takes a connection",
            }
            engine.close()
            assert api.client.get("/readyz").status_code == 503


def samples(api: Api) -> dict[str, float]:
    text = api.client.get("/metrics").text
    return {
        name: float(value)
        for name, value in (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    }


def test_metrics_count_requests_tokens_and_commits(api: Api) -> None:
    usage = api.analyze("hotel", **{"X-Project-ID": "search"}).get_json()["usage"]
    api.analyze("")
    api.client.get("/nowhere/at/all")
    found = samples(api)
    assert found['tallybook_requests_total{route="/analyze",status="200"}'] == 1
    assert found['tallybook_requests_total{route="/analyze",status="400"}'] == 1
    assert found['tallybook_requests_total{route="unknown",status="404"}'] == 1
    labels = 'model="review-sentiment",model_version="1",project="search"'
    for direction in ("prompt", "completion"):
        name = f'tallybook_tokens_total{{direction="{direction}",{labels}}}'
        assert found[name] == usage[f"{direction}_tokens"]
    assert found['tallybook_request_seconds_count{route="/analyze"}'] == 2
    assert found["tallybook_model_seconds_count"] == 1
    assert found["tallybook_journal_wait_seconds_count"] == 1
    assert found["tallybook_journal_commit_events_sum"] == 1
    assert found["tallybook_journal_bytes_total"] > 300
    assert found["tallybook_model_in_flight"] == 0
    assert found['tallybook_served_seconds_count{model="review-sentiment"}'] == 1
    assert found["tallybook_journal_waiting_events"] == found["tallybook_journal_unavailable"] == 0
    assert found["process_resident_memory_bytes"] > 0


def test_a_user_is_never_a_label(api: Api) -> None:
    api.analyze("hotel", **{"X-User-ID": "the-user-themselves"})
    assert "themselves" not in api.client.get("/metrics").text


def test_calls_under_way_are_counted_also_when_they_fail(api: Api) -> None:
    api.server.failure = ModelUnavailableError("down")
    api.analyze()
    assert samples(api)["tallybook_model_in_flight"] == 0
