import json
import logging
from pathlib import Path
from typing import Any

import pytest

from serving.app import create_app
from serving.errors import ModelUnavailableError
from serving.observability import logs
from serving.settings import ServingSettings
from tests.apis import USER, Api, running_app
from tests.serving.quotas.courses import Clock


@pytest.fixture
def api(tmp_path: Path) -> Any:
    with running_app(tmp_path) as running:
        yield running


@pytest.fixture
def lines(api: Api, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The log lines written from here on."""
    written: list[dict[str, Any]] = []
    monkeypatch.setattr(
        api.services.log, "write", lambda line: written.append(json.loads(logs.encode(line())))
    )
    return written


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not_found"),
        ("GET", "/analyse", 404, "not_found"),
        ("POST", "/analyze/", 404, "not_found"),
        ("POST", "//analyze", 404, "not_found"),
        ("GET", "/static/x", 404, "not_found"),
        ("GET", "/<script>alert(1)</script>", 404, "not_found"),
        ("GET", "/%ff%0a", 404, "not_found"),
        ("GET", "/analyze", 405, "method_not_allowed"),
        ("OPTIONS", "/analyze", 405, "method_not_allowed"),
        ("BREW", "/analyze", 405, "method_not_allowed"),
        ("POST", "/metrics", 405, "method_not_allowed"),
    ],
)
def test_an_unknown_path_or_method_is_told_in_json(
    api: Api, method: str, path: str, status: int, code: str
) -> None:
    response = api.client.open(path, method=method, headers=USER)
    assert (response.status_code, response.get_json()["error"]["code"]) == (status, code)
    assert response.content_type == "application/json"
    assert "<" not in response.text
    assert response.headers["X-Request-ID"] == response.get_json()["error"]["request_id"]


def test_refused_requests_count_in_the_minute_and_are_told_when_there_are_too_many(tmp_path: Path) -> None:
    with running_app(tmp_path, quota_requests_per_minute=3) as api:
        api.services.quotas._clock = Clock()  # type: ignore[attr-defined]
        refused = [
            api.client.post("/analyze", data="{", headers=USER),
            api.client.post("/v1/chat/completions", json={"model": "none"}, headers=USER),
            api.client.post("/v1/classify", json={"model": "review-sentiment"}, headers=USER),
            api.client.post("/analyze", data="{", headers=USER),
            api.client.post("/analyze", json={"text": "hotel"}, headers=USER),
        ]
        codes = [answer.get_json()["error"]["code"] for answer in refused]
        assert codes == ["invalid_json", "model_not_found", "invalid_value", *["quota_requests"] * 2]
        assert "Retry-After" in refused[3].headers
        assert api.client.post("/analyze", data="{").get_json()["error"]["code"] == "missing_user"
        assert api.analyze(**{"X-User-ID": "user-b"}).status_code == 200


def test_a_request_counts_once_and_again_for_its_repetition(tmp_path: Path) -> None:
    with running_app(tmp_path) as api:
        api.services.quotas._clock = Clock()  # type: ignore[attr-defined]
        for answers in (1, 2):
            answer = api.analyze(**{"Idempotency-Key": "one"})
            assert answer.headers["x-ratelimit-remaining-requests"] == str(600 - answers)


def test_a_wrong_method_is_told_the_right_one(api: Api) -> None:
    assert api.client.get("/analyze").headers["Allow"] == "POST"


def test_a_fault_of_ours_is_logged_in_full_and_leaks_nothing(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(api.services.catalog, "choose", lambda user: 1 / 0)
    response = api.analyze()
    assert (response.status_code, response.get_json()["error"]["code"]) == (500, "internal_error")
    assert "division" not in response.text
    assert response.get_json()["error"]["request_id"] in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert api.events() == []


def test_an_answered_request_is_one_log_line(api: Api, lines: list[dict[str, Any]]) -> None:
    answer = api.analyze("hotel", **{"X-Project-ID": "search"}).get_json()
    [line] = [line for line in lines if line["message"] == "request"]
    assert line["request_id"] == answer["request_id"]
    assert (line["user"], line["project"], line["client_ip"]) == ("user-a", "search", "127.0.0.1")
    assert (line["method"], line["path"], line["status"], line["code"]) == ("POST", "/analyze", 200, None)
    assert line["prompt_tokens"] == answer["usage"]["prompt_tokens"]
    assert line["completion_tokens"] == answer["usage"]["completion_tokens"]
    assert line["seconds"] > 0


def test_a_refused_request_is_logged_without_tokens(api: Api, lines: list[dict[str, Any]]) -> None:
    api.analyze("")
    [line] = lines
    assert (line["status"], line["code"], line["user"]) == (400, "empty_text", "user-a")
    assert line["prompt_tokens"] is None


def test_a_failure_that_is_not_the_clients_is_logged_with_its_reason(
    api: Api, lines: list[dict[str, Any]]
) -> None:
    api.server.failure = ModelUnavailableError("the model server can't be reached")
    message = api.analyze().get_json()["error"]["message"]
    [line] = lines
    assert message == line["reason"] == "The model server can't be reached."
    assert (line["level"], line["code"]) == ("error", "model_unavailable")


def test_a_refused_name_reaches_no_log(api: Api, lines: list[dict[str, Any]]) -> None:
    api.analyze("hotel", **{"X-User-ID": "<script>"})
    [line] = lines
    assert line["user"] is None
    assert "<script>" not in json.dumps(line)


def test_a_long_unknown_path_is_shortened_visibly(api: Api, lines: list[dict[str, Any]]) -> None:
    api.client.get("/" + "x" * 1000)
    assert lines[0]["path"] == "/" + "x" * 199 + "…"


@pytest.mark.parametrize(
    "text", ['"}\n{"id":"forged"}', "<script>alert(1)</script>", "=1+1", "\r\nSet-Cookie: a"]
)
def test_a_text_cannot_forge_an_event(tmp_path: Path, text: str) -> None:
    with running_app(tmp_path, prompt_capture="prefix") as api:
        answer = api.analyze(text).get_json()
        [event] = api.events()
        assert (event.id, event.prompt_prefix) == (answer["request_id"], text)


def test_the_start_says_loudly_whose_word_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    settings = ServingSettings(
        journal_dir=tmp_path,
        models_dir=tmp_path,
        model_server_address="127.0.0.1:1",
        trusted_proxies=["10.0.0.0/8"],
    )
    app = create_app(settings)
    app.extensions["tallybook"].close()
    assert "X-USER-ID IS TRUSTED WITHOUT A KEY from these networks: 127.0.0.0/8, ::1/128" in caplog.text
    assert "X-Forwarded-For is believed from: 10.0.0.0/8" in caplog.text
