"""POST /v1/classify: of the real model server, and of a stand-in that can fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from serving.tokenization import ModelVersion, load_version
from tests.apis import MODEL, USER, Api, ApiProcess, events_in, export, running_app
from tests.engines import MODEL as ENGINE
from tests.engines import write_engines
from tests.modelservers import running_server
from tests.savedmodels import LABELS, MAX_LENGTH_TOKENS, tiny_probabilities

NEVER = 3600
TEXTS = ["hotel", "a clean room and good service", "很好"]


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with running_app(tmp_path) as running:
        yield running


def ask(api: Api, given: Any, headers: Any = None, **more: Any) -> Any:
    body = {"model": MODEL, "input": given, **more}
    return api.client.post("/v1/classify", json=body, headers={**USER, **(headers or {})})


def left_today(api: Api) -> int:
    quotas = api.client.get("/v1/quota", headers=USER).get_json()["quotas"]
    return int(quotas["user_day_tokens"]["remaining"])


def check_data(data: list[dict[str, Any]], counter: ModelVersion, texts: list[str]) -> None:
    """The rows are those of the tiny model, in the order of the texts."""
    expected = [tiny_probabilities(counter.ids(text)) for text in texts]
    np.testing.assert_allclose([one["probs"] for one in data], expected, atol=1e-6)
    assert [one["index"] for one in data] == list(range(len(texts)))
    assert [one["label"] for one in data] == [LABELS[int(row.argmax())][0] for row in expected]
    assert {one["num_classes"] for one in data} == {len(LABELS)}


def test_the_real_model_server_answers_in_the_form_of_vllm(models_dir: Path, tmp_path: Path) -> None:
    counter = load_version(models_dir, MODEL, 1)
    tokens = sum(len(counter.ids(text)) for text in TEXTS)
    with running_server(models_dir) as server:
        process = ApiProcess(tmp_path, models_dir, server.address)
        try:
            process.wait_until_ready()
            body = {"model": MODEL, "input": TEXTS}
            response = httpx.post(f"{process.address}/v1/classify", json=body, headers=USER)
            events = events_in(process.journal_dir)
        finally:
            process.kill()
    answer = response.json()
    assert (answer["object"], answer["model"]) == ("list", MODEL)
    check_data(answer["data"], counter, TEXTS)
    assert answer["usage"] == {
        "prompt_tokens": tokens,
        "total_tokens": tokens,
        "completion_tokens": 0,
        "prompt_tokens_details": None,
    }
    [event] = events
    assert answer["id"] == f"classify-{event.id}"
    assert (event.operation, event.model, event.model_version) == ("classify", MODEL, "1")
    assert (event.prompt_tokens, event.completion_tokens, event.status) == (tokens, 0, 200)


def test_many_inputs_are_a_few_calls_one_event_and_keep_their_order(api: Api, tmp_path: Path) -> None:
    counter = load_version(tmp_path / "models", MODEL, 1)
    before = left_today(api)
    texts = ["a" * 7 + " b" * (number * 37 % 50) for number in range(70)]
    answer = ask(api, texts).get_json()
    check_data(answer["data"], counter, texts)
    assert api.server.batches == [32, 32, 6]
    [event] = api.events()
    assert event.total_tokens == sum(len(counter.ids(text)) for text in texts)
    assert before - left_today(api) == event.total_tokens == answer["usage"]["total_tokens"]


def test_token_ids_are_taken_as_they_are(api: Api) -> None:
    assert ask(api, [5, 6]).get_json()["usage"]["prompt_tokens"] == 2
    assert api.server.asked[-1] == (1, [5, 6])


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"input": ["a", "b " * MAX_LENGTH_TOKENS]}, "context_length_exceeded", None),
        ({"input": [5, 1_000_000]}, "invalid_value", "input"),
        ({"input": ["a", ""]}, "invalid_value", "input"),
        ({"input": ["a", " "]}, "invalid_value", "input"),
        ({"input": "a", "use_activation": False}, "unsupported_by_model", None),
        ({"input": "a", "model": ENGINE}, "unsupported_by_model", None),
        ({"input": "a", "model": "nobody"}, "model_not_found", None),
    ],
)
def test_what_can_not_be_classified_is_refused_and_costs_nothing(
    tmp_path: Path, body: dict[str, Any], code: str, param: str | None
) -> None:
    file = write_engines(tmp_path, {"addresses": ["http://127.0.0.1:9/v1"]})
    with running_app(tmp_path, engines_file=file) as api:
        before = left_today(api)
        answer = ask(api, body.pop("input"), **body)
        assert answer.status_code == (404 if code == "model_not_found" else 400)
        error = answer.get_json()["error"]
        assert (error["code"], error["param"]) == (code, param)
        assert (api.server.asked, api.events(), left_today(api)) == ([], [], before)


def test_a_model_that_classifies_does_nothing_else(api: Api) -> None:
    asked = {"model": MODEL, "input": "a", "messages": [{"role": "user", "content": "a"}]}
    for path in ("/v1/chat/completions", "/v1/embeddings"):
        error = api.client.post(path, json=asked, headers=USER).get_json()["error"]
        assert (error["code"], "for classify" in error["message"]) == ("unsupported_by_model", True)
    assert MODEL in [one["id"] for one in api.client.get("/v1/models", headers=USER).get_json()["data"]]


def test_a_model_server_that_fails_or_lies_costs_nothing(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    before = left_today(api)
    api.server.failure = RuntimeError("on purpose")
    assert ask(api, "a").status_code == 500
    api.server.failure = None
    no_probabilities = np.full((1, len(LABELS)), 2.0, np.float32)
    monkeypatch.setattr(api.server, "classify", lambda *_: no_probabilities)
    assert ask(api, "a").get_json()["error"]["code"] == "model_rejected"
    assert (api.events(), left_today(api)) == ([], before)


def test_a_version_that_left_is_followed_by_the_one_that_answers_now(tmp_path: Path) -> None:
    models_dir = tmp_path / "models"
    for version in (1, 2):
        export(models_dir, version)
    with running_app(tmp_path, models_dir=models_dir, version_poll_seconds=NEVER) as api:
        api.server.states = {2: "AVAILABLE"}
        assert ask(api, ["a", "b"]).status_code == 200
        [event] = api.events()
        assert event.model_version == "2"


def test_the_same_idempotency_key_is_billed_once(api: Api) -> None:
    first, again = (ask(api, ["a", "b"], {"Idempotency-Key": "k"}) for _ in range(2))
    assert first.status_code == 200
    assert first.data == again.data
    assert len(api.events()) == 1


def test_a_quota_that_has_no_room_is_told(tmp_path: Path) -> None:
    with running_app(tmp_path, quota_user_day_tokens=5) as api:
        assert ask(api, "a").status_code == 200  # 3 tokens
        answer = ask(api, "a")
        assert (answer.status_code, answer.get_json()["error"]["code"]) == (429, "quota_user_day")
        assert len(api.events()) == 1


def test_it_is_answered_while_engines_hold_all_their_threads(tmp_path: Path) -> None:
    with running_app(tmp_path, engine_requests=1) as api, api.services.queue.engine_threads:
        assert ask(api, "hotel").status_code == 200
        busy = api.client.post("/v1/embeddings", json={"model": MODEL, "input": "a"}, headers=USER)
        assert (busy.status_code, busy.get_json()["error"]["code"]) == (503, "overloaded")
