import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import orjson
import pytest
from tokenizers import Tokenizer
from tokenizers.normalizers import BertNormalizer

from serving.errors import (
    BodyTooLargeError,
    IncompleteBodyError,
    ModelRejectedError,
    ModelTimeoutError,
    ModelUnavailableError,
    ModelVersionNotFoundError,
)
from serving.routes.analyze import read_body
from tests.apis import MODEL, USER, Api, StandIn, alter_card, export, running_app
from tests.savedmodels import MAX_LENGTH_TOKENS, tiny_probabilities


@pytest.fixture
def api(tmp_path: Path) -> Any:
    with running_app(tmp_path) as running:
        yield running


def tokenizer_of(tmp_path: Path, version: int = 1) -> Tokenizer:
    folder = tmp_path / "models" / "review-sentiment" / str(version) / "assets.extra"
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_a_text_is_answered_with_its_label_and_its_tokens(api: Api, tmp_path: Path) -> None:
    text = "房间很干净，服务态度差"
    response = api.analyze(text)
    assert response.status_code == 200
    answer = response.get_json()
    tokenizer = tokenizer_of(tmp_path)
    ids = tokenizer.encode(text).ids
    negative, positive = tiny_probabilities(ids)
    assert answer["probabilities"] == {"negative": float(negative), "positive": float(positive)}
    best = max(answer["probabilities"], key=answer["probabilities"].__getitem__)
    word = {"negative": "负", "positive": "正"}[best]
    assert answer["output"] == f"{best}：这是一条{word}面评价，把握 {max(negative, positive):.1%}。"
    completion = len(tokenizer.encode(answer["output"], add_special_tokens=False).ids)
    assert answer["usage"] == {
        "prompt_tokens": len(ids),
        "completion_tokens": completion,
        "total_tokens": len(ids) + completion,
    }
    assert (answer["label"], answer["model"], answer["model_version"]) == (best, "review-sentiment", "1")
    assert response.headers["X-Request-ID"] == answer["request_id"]
    assert api.server.asked == [(1, ids)]


def test_an_answer_is_recorded_once_with_what_the_client_saw(api: Api) -> None:
    answer = api.analyze("hotel", **{"X-Project-ID": "search"}).get_json()
    [event] = api.events()
    assert event.id == answer["request_id"]
    assert (event.user, event.project, event.department) == ("user-a", "search", "default")
    assert (event.model, event.model_version) == (answer["model"], answer["model_version"])
    assert event.prompt_tokens == answer["usage"]["prompt_tokens"]
    assert event.completion_tokens == answer["usage"]["completion_tokens"]
    assert event.prompt_sha256 == hashlib.sha256(b"hotel").hexdigest()
    assert event.prompt_prefix is None
    assert (event.operation, event.status, event.client_ip) == ("analyze", 200, "127.0.0.1")
    assert 0 < event.duration_seconds < 30


def test_a_clients_request_id_is_not_taken(api: Api) -> None:
    response = api.analyze("hotel", **{"X-Request-ID": "mine"})
    assert response.get_json()["request_id"] != "mine"
    assert response.headers.getlist("X-Request-ID") == [response.get_json()["request_id"]]


BAD_BODIES = {
    "nothing": (b"", 400, "invalid_json"),
    "no JSON": (b"text=hotel", 400, "invalid_json"),
    "half JSON": (b'{"text": "hot', 400, "invalid_json"),
    "a list": (b'["text"]', 400, "invalid_json"),
    "a deep nest": (b"[" * 5000, 400, "invalid_json"),
    "a number beyond all numbers": (b'{"text": 1e999}', 400, "invalid_json"),
    "a byte order mark": (b'\xef\xbb\xbf{"text": "a"}', 400, "invalid_encoding"),
    "Latin-1": ('{"text": "caf\xe9"}'.encode("latin-1"), 400, "invalid_encoding"),
    "GBK": ('{"text": "房间"}'.encode("gbk"), 400, "invalid_encoding"),
    "a high surrogate": (b'{"text": "\\ud800"}', 400, "invalid_encoding"),
    "a low surrogate": (b'{"text": "\\udc00 a"}', 400, "invalid_encoding"),
    "an encoded surrogate": (b'{"text": "\xed\xa0\x80"}', 400, "invalid_encoding"),
    "no text": (b"{}", 400, "missing_text"),
    "a number": (b'{"text": 7}', 400, "invalid_text"),
    "null": (b'{"text": null}', 400, "invalid_text"),
    "empty": (b'{"text": ""}', 400, "empty_text"),
    "blank": ('{"text": " \\n\u3000"}'.encode(), 400, "empty_text"),
    "control characters": (b'{"text": "\\u0001\\u0002"}', 400, "empty_text"),
    "a field too much": (b'{"text": "a", "model": "gpt"}', 400, "unknown_field"),
    "too long": (orjson.dumps({"text": "很" * (MAX_LENGTH_TOKENS - 1)}), 422, "text_too_long"),
    "too big": (orjson.dumps({"text": "a" * (1 << 20)}), 413, "body_too_large"),
}


@pytest.mark.parametrize(("body", "status", "code"), BAD_BODIES.values(), ids=BAD_BODIES)
def test_a_bad_body_is_refused_and_costs_nothing(api: Api, body: bytes, status: int, code: str) -> None:
    response = api.client.post("/analyze", data=body, headers=USER)
    assert (response.status_code, response.get_json()["error"]["code"]) == (status, code)
    assert response.headers["X-Request-ID"] == response.get_json()["error"]["request_id"]
    assert api.server.asked == []
    assert api.events() == []


def test_a_text_of_just_the_models_length_is_taken_whole(api: Api) -> None:
    answer = api.analyze("很" * (MAX_LENGTH_TOKENS - 2)).get_json()
    assert answer["usage"]["prompt_tokens"] == MAX_LENGTH_TOKENS


def test_a_text_that_is_too_long_is_told_both_lengths(api: Api) -> None:
    message = api.analyze("很" * 200).get_json()["error"]["message"]
    assert "202 tokens" in message
    assert f"at most {MAX_LENGTH_TOKENS}" in message


def test_of_a_name_given_twice_the_last_counts(api: Api) -> None:
    api.client.post("/analyze", data=b'{"text": "bad", "text": "good"}', headers=USER)
    assert api.events()[0].prompt_sha256 == hashlib.sha256(b"good").hexdigest()


def test_a_body_without_a_length_is_read_to_its_end_and_no_further_than_the_limit() -> None:
    class Chunks:
        def __init__(self, size: int) -> None:
            self.left = size

        def read(self, size: int) -> bytes:
            given = min(size, self.left)
            self.left -= given
            return b"x" * given

    environ = {"wsgi.input_terminated": True, "wsgi.input": Chunks(100)}
    assert len(read_body(environ, 100)) == 100
    endless = Chunks(10**9)
    with pytest.raises(BodyTooLargeError):
        read_body({"wsgi.input_terminated": True, "wsgi.input": endless}, 100)
    assert endless.left > 10**9 - 200


def test_a_body_that_ends_early_is_refused() -> None:
    with pytest.raises(IncompleteBodyError, match="12 of 20"):
        read_body({"CONTENT_LENGTH": "20", "wsgi.input": BytesIO(b'{"text":"a"}')}, 100)


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (ModelUnavailableError("down"), 503, "model_unavailable"),
        (ModelTimeoutError("slow"), 504, "model_timeout"),
        (ModelRejectedError("refused"), 502, "model_rejected"),
        (ModelVersionNotFoundError("gone"), 503, "model_unavailable"),
        (ZeroDivisionError("secret"), 500, "internal_error"),
    ],
)
def test_a_model_that_fails_costs_nothing(api: Api, failure: Exception, status: int, code: str) -> None:
    api.server.failure = failure
    response = api.analyze()
    assert (response.status_code, response.get_json()["error"]["code"]) == (status, code)
    assert "secret" not in response.text
    assert api.events() == []


def test_a_request_whose_time_is_up_does_not_ask_the_model(tmp_path: Path) -> None:
    with running_app(tmp_path, deadline_seconds=1e-9) as api:
        response = api.analyze()
        assert (response.status_code, response.get_json()["error"]["code"]) == (504, "model_timeout")
        assert api.server.asked == []
        assert api.events() == []


def test_an_event_that_cannot_be_recorded_means_no_answer(tmp_path: Path) -> None:
    (tmp_path / "journal").write_text("a file is in the way")
    with running_app(tmp_path) as api:
        response = api.analyze()
        assert (response.status_code, response.get_json()["error"]["code"]) == (503, "journal_unavailable")
        assert "probabilities" not in response.text
        assert api.server.asked == [], "the model need not work for an answer that can't be given"


def test_an_answer_leaves_only_after_its_event_is_durable(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    disk_answers, disk_is_asked = threading.Event(), threading.Event()
    sync = os.fdatasync

    def slow_sync(file: int) -> None:
        disk_is_asked.set()
        assert disk_answers.wait(30)
        sync(file)

    monkeypatch.setattr(os, "fdatasync", slow_sync)
    with ThreadPoolExecutor(1) as pool:
        request = pool.submit(api.analyze)
        assert disk_is_asked.wait(30)
        assert not request.done()
        disk_answers.set()
        assert request.result(30).status_code == 200


def test_a_disk_that_fails_under_an_answer_takes_the_answer_back(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as disk:
        disk.setattr(os, "fdatasync", fail)
        response = api.analyze()
    assert (response.status_code, response.get_json()["error"]["code"]) == (503, "journal_unavailable")
    assert api.server.asked != []
    assert api.events() == []


def test_a_version_that_went_away_is_followed_by_the_next_counted_anew(tmp_path: Path) -> None:
    models_dir = tmp_path / "models"
    export(models_dir, 1)
    tell_cases_apart(export(models_dir, 2))
    server = StandIn(1)
    with running_app(tmp_path, server, models_dir=models_dir, version_poll_seconds=3600) as api:
        assert api.analyze("HOTEL").get_json()["usage"]["prompt_tokens"] == 7  # five letters
        server.states = {1: "END", 2: "AVAILABLE"}
        answer = api.analyze("HOTEL").get_json()
        assert answer["model_version"] == "2"
        assert answer["usage"]["prompt_tokens"] == 3  # one word that version 2 does not know
        assert [version for version, _ in server.asked] == [1, 1, 2]
        assert [(event.model_version, event.prompt_tokens) for event in api.events()] == [("1", 7), ("2", 3)]


def tell_cases_apart(folder: Path) -> None:
    """Give an exported version a tokenizer of its own."""
    file = folder / "assets.extra" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.normalizer = BertNormalizer(lowercase=False)
    tokenizer.save(str(file))
    alter_card(folder, tokenizer_fingerprint=hashlib.sha256(file.read_bytes()).hexdigest())


def test_the_limit_is_that_of_the_version_that_answers(tmp_path: Path) -> None:
    models_dir = tmp_path / "models"
    export(models_dir, 1)
    alter_card(export(models_dir, 2), max_length_tokens=5)
    server = StandIn(1)
    with running_app(tmp_path, server, models_dir=models_dir, version_poll_seconds=3600) as api:
        assert api.analyze("a b c d").status_code == 200
        server.states = {1: "END", 2: "AVAILABLE"}
        assert api.analyze("a b c d").get_json()["error"]["code"] == "text_too_long"
        assert len(api.events()) == 1


def test_a_version_that_went_away_without_a_successor_costs_nothing(api: Api) -> None:
    api.server.states = {1: "UNLOADING"}
    response = api.analyze()
    assert (response.status_code, response.get_json()["error"]["code"]) == (503, "model_unavailable")
    assert api.events() == []


def test_requests_beyond_the_places_are_refused_at_once(tmp_path: Path) -> None:
    with running_app(tmp_path, threads=2) as api, ThreadPoolExecutor(2) as pool:
        api.server.may_answer.clear()
        waiting = [pool.submit(api.app.test_client().post, "/analyze", json={"text": "a"}, headers=USER)
                   for _ in range(2)]  # fmt: skip
        for _ in waiting:
            assert api.server.was_asked.acquire(timeout=30)
        response = api.analyze()
        assert (response.status_code, response.get_json()["error"]["code"]) == (503, "overloaded")
        assert response.headers["Retry-After"] == "1"
        assert api.client.get("/healthz").status_code == 200
        api.server.may_answer.set()
        assert [request.result(30).status_code for request in waiting] == [200, 200]
        assert api.analyze().status_code == 200
    assert len(api.events()) == 3


def test_requests_of_64_threads_are_each_recorded_once(tmp_path: Path) -> None:
    with running_app(tmp_path) as api:

        def ask(number: int) -> Any:
            headers = {"X-User-ID": f"user-{number % 12}"}
            return api.app.test_client().post("/analyze", json={"text": f"a{number}"}, headers=headers).json

        with ThreadPoolExecutor(64) as pool:
            answers = {answer["request_id"]: answer for answer in pool.map(ask, range(400))}
        events = {event.id: event for event in api.events()}
    assert events.keys() == answers.keys()
    assert len(answers) == 400
    for event_id, event in events.items():
        assert event.total_tokens == answers[event_id]["usage"]["total_tokens"]


def test_an_event_carries_the_label_under_which_its_version_answered(tmp_path: Path) -> None:
    models_dir = tmp_path / "models"
    for version in (1, 2):
        export(models_dir, version)
    (models_dir / "models.config").write_text(
        f'model_config_list {{ config {{ name: "{MODEL}" base_path: "{models_dir}"'
        ' version_labels { key: "stable" value: 1 } version_labels { key: "canary" value: 2 } } }'
    )
    (models_dir / "canary_shares.json").write_text(f'{{"{MODEL}": "40"}}')
    with running_app(tmp_path, StandIn(1, 2), models_dir=models_dir) as api:
        answers = [api.analyze(**{"X-User-ID": f"user-{number}"}).get_json() for number in range(20)]
        events = {event.id: event for event in api.events()}
    seen = {
        (a["model_version"], events[a["request_id"]].model_version, events[a["request_id"]].model_label)
        for a in answers
    }
    assert seen == {("1", "1", "stable"), ("2", "2", "canary")}
