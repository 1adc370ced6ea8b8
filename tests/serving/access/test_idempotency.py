from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from serving.access import idempotency
from serving.access.idempotency import Replayed
from serving.access.store import idempotent_answers
from serving.errors import ApiError, JournalError
from tests.apis import USER, Api, running_app
from tests.engines import MODEL, completion, usage, whole
from tests.modelservers import wait_until
from tests.serving.test_v1 import HELLO, running_gateway

KEY = {"Idempotency-Key": "order-7"}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with running_app(tmp_path) as running:
        yield running


def code(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json["error"]["code"]


def begin(api: Api, request_id: str, body: bytes = b"{}") -> Any:
    """The attempt of a request that is not answered by a route."""
    environ = {
        "REMOTE_ADDR": "127.0.0.1", "HTTP_X_USER_ID": "user-a", "HTTP_IDEMPOTENCY_KEY": "order-7",
        "REQUEST_METHOD": "POST", "PATH_INFO": "/analyze",
    }  # fmt: skip
    caller = api.services.gatekeeper.identify(environ)
    return api.services.idempotency.begin(environ, caller, body, request_id)


def age(api: Api, seconds: float) -> None:
    """Let time pass over what is kept."""
    past = datetime.now(timezone.utc) - timedelta(seconds=seconds)
    with api.services.access.store().begin() as connection:
        connection.execute(idempotent_answers.update().values(asked_at=past, held_until=past))


def test_the_same_request_gets_the_same_answer_and_is_billed_once(api: Api) -> None:
    first, again = api.analyze("hotel", **KEY), api.analyze("hotel", **KEY)
    assert (first.status_code, again.status_code) == (200, 200)
    assert again.data == first.data
    assert ["Idempotent-Replayed" in answer.headers for answer in (first, again)] == [False, True]
    assert [event.id for event in api.events()] == [first.json["request_id"]]
    other = api.analyze("hotel", **{"Idempotency-Key": "order-8"})
    assert other.json["request_id"] != first.json["request_id"]
    assert len(api.events()) == 2


def test_another_body_is_refused(api: Api) -> None:
    api.analyze("hotel", **KEY)
    assert code(api.analyze("room", **KEY)) == (422, "idempotency_key_reused")
    assert len(api.events()) == 1


def test_a_key_is_its_callers_and_lasts_a_day(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    first = api.analyze("hotel", **KEY)
    assert api.analyze("room", **{**KEY, "X-User-ID": "user-b"}).status_code == 200
    assert api.analyze("room", **{**KEY, "X-Project-ID": "other"}).status_code == 200
    age(api, 86_399)
    assert api.analyze("hotel", **KEY).data == first.data
    age(api, 86_401)
    monkeypatch.setattr(api.services.idempotency, "_sweep_at", 0.0)
    assert api.analyze("room", **KEY).status_code == 200
    assert len(api.events()) == 4


def test_an_answer_is_not_kept_for_longer_though_nobody_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "HOLD_SECONDS", 0.3)
    with running_app(tmp_path) as api:
        api.analyze("hotel", **KEY)
        age(api, 86_401)
        monkeypatch.setattr(api.services.idempotency, "_sweep_at", 0.0)

        def kept() -> int:
            with api.services.access.store().begin() as connection:
                return len(connection.execute(idempotent_answers.select()).all())

        wait_until(lambda: not kept())


@pytest.mark.parametrize("key", ["", "x" * 256, "two\twords", "\xe9"])
def test_an_unfit_key_is_refused(api: Api, key: str) -> None:
    assert code(api.analyze("hotel", **{"Idempotency-Key": key})) == (400, "invalid_idempotency_key")
    assert api.events() == []


def test_a_failed_attempt_is_forgotten(api: Api) -> None:
    api.server.failure = ApiError("broken")
    assert api.analyze("hotel", **KEY).status_code == 500
    api.server.failure = None
    assert api.analyze("hotel", **KEY).status_code == 200
    assert len(api.events()) == 1


def test_many_at_once_are_answered_by_one(api: Api) -> None:
    api.server.may_answer.clear()

    def ask(_: int) -> bytes:
        headers = {"X-User-ID": "user-a", **KEY}
        answer = api.app.test_client().post("/analyze", json={"text": "hotel"}, headers=headers)
        assert answer.status_code == 200
        return bytes(answer.data)

    with ThreadPoolExecutor(8) as clients:
        answers = [clients.submit(ask, number) for number in range(8)]
        assert api.server.was_asked.acquire(timeout=30)
        api.server.may_answer.set()
        assert len({answer.result() for answer in answers}) == 1
    assert len(api.server.asked) == len(api.events()) == 1


def test_who_waits_too_long_is_told_to_come_again(tmp_path: Path) -> None:
    with running_app(tmp_path, deadline_seconds=0.2) as api:
        begin(api, "first")
        with pytest.raises(ApiError) as caught:
            begin(api, "second")
        assert (caught.value.status, caught.value.code) == (409, "idempotency_in_progress")
        assert caught.value.headers == {"Retry-After": "1"}


def test_an_attempt_is_held_while_its_process_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "HOLD_SECONDS", 0.3)
    with running_app(tmp_path, deadline_seconds=1.0) as api:
        begin(api, "first")
        with pytest.raises(ApiError, match="not answered yet"):
            begin(api, "second")


def test_a_process_that_died_before_it_kept_anything_is_followed_by_a_new_attempt(api: Api) -> None:
    dead = begin(api, "first")
    api.services.idempotency.forget(dead)
    age(api, 1)
    alive = begin(api, "second")
    with pytest.raises(ApiError, match="took over"):
        dead.keep({"id": "first"}, b"too late")  # it was not dead: it must not be billed
    alive.keep({"id": "second"}, b"answer")
    alive.done()
    with pytest.raises(Replayed) as caught:
        begin(api, "third")
    assert caught.value.body == b"answer"


@pytest.mark.parametrize("was_durable", [True, False])
def test_a_process_that_died_around_the_journal_is_followed_by_its_very_event(
    api: Api, monkeypatch: pytest.MonkeyPatch, was_durable: bool
) -> None:
    class Died(BaseException):
        """The process, in this test."""

    append = api.services.journal.append

    def die(record: Any, timeout_seconds: float) -> None:
        if was_durable:
            append(record, timeout_seconds)
        raise Died

    monkeypatch.setattr(api.services.journal, "append", die)
    with pytest.raises(Died):
        api.analyze("hotel", **KEY)
    monkeypatch.undo()
    for attempt in list(api.services.idempotency._running.values()):
        api.services.idempotency.forget(attempt)
    assert len(api.events()) == was_durable
    age(api, 1)
    answers = [api.analyze("hotel", **KEY) for _ in range(2)]
    assert answers[0].data == answers[1].data
    assert {event.id for event in api.events()} == {answers[0].json["request_id"]}
    assert len(set(map(repr, api.events()))) == 1  # the same to the letter, which ingest stores once
    assert len(api.server.asked) == 1


def test_an_event_that_is_not_recorded_leaves_nothing(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(record: Any, timeout_seconds: float) -> None:
        raise JournalError("full")

    with monkeypatch.context() as broken:
        broken.setattr(api.services.journal, "append", refuse)
        assert code(api.analyze("hotel", **KEY)) == (503, "journal_unavailable")
    assert api.analyze("hotel", **KEY).status_code == 200
    assert len(api.events()) == 1


def test_a_chat_is_answered_once_and_a_stream_takes_no_key(tmp_path: Path) -> None:
    with running_gateway(tmp_path) as gateway:
        gateway.engine.script = lambda asked: whole(completion("very well", usage(6, 2)))

        def chat(**body: Any) -> Any:
            asked = {"model": MODEL, "messages": HELLO, **body}
            return gateway.api.client.post("/v1/chat/completions", json=asked, headers={**USER, **KEY})

        refused = chat(stream=True)
        assert (refused.status_code, refused.json["error"]["code"]) == (400, "invalid_idempotency_key")
        first, again = chat(), chat()
        assert (first.status_code, again.status_code) == (200, 200)
        assert again.data == first.data
        assert len(gateway.api.events()) == 1
        assert chat(max_tokens=7).status_code == 422
