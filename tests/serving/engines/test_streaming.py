import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving import services
from serving.engines import address, streaming
from tests.engines import MODEL, chunk, completion, streamed, usage, usage_chunk, whole
from tests.modelservers import wait_until
from tests.serving.test_v1 import PROMPT_TOKENS, Gateway, events_of, gateway, held, running_gateway

__all__ = ["gateway"]


def said(events: list[Any]) -> str:
    """The text of a stream."""
    return "".join(
        choice["delta"].get("content", "") for event in events[:-1] for choice in event.get("choices", ())
    )


def test_a_stream_is_passed_on_and_its_usage_hidden_from_who_did_not_ask(gateway: Gateway) -> None:
    gateway.engine.script = lambda asked: streamed(
        chunk(usage=None), chunk("good "), chunk("day", usage=usage(7, 1)), usage_chunk(usage(7, 2))
    )
    events = gateway.stream()
    assert said(events) == "good day"
    assert events[-1] == "[DONE]"
    assert all("usage" not in event and event["model"] == MODEL for event in events[:-1])
    assert gateway.engine.asked[0].body["stream_options"] == {"include_usage": True}
    [event] = gateway.api.events()
    assert (event.prompt_tokens, event.completion_tokens, event.usage_estimated) == (7, 2, False)
    assert (event.status, event.delivered_tokens) == (200, None)
    assert event.time_to_first_token_seconds is not None
    assert 0 < event.time_to_first_token_seconds <= event.duration_seconds


def test_who_asks_for_usage_gets_it_once_and_last(gateway: Gateway) -> None:
    first = usage_chunk(usage(7, 1))
    gateway.engine.script = lambda asked: streamed(chunk("a", usage=usage(7, 1)), first, usage_chunk())
    events = gateway.stream(stream_options={"include_usage": True})
    assert [event.get("usage") and event["usage"]["total_tokens"] for event in events[:-1]] == [None, 10]
    assert events[-2]["choices"] == []
    [event] = gateway.api.events()
    assert event.total_tokens == 10  # that of the last chunk, not of all


def test_usage_that_a_stream_does_not_say_is_counted_and_told(gateway: Gateway) -> None:
    gateway.engine.script = lambda asked: streamed(chunk("one two "), chunk("three"), chunk("a b", 1))
    events = gateway.stream(stream_options={"include_usage": True}, n=2)
    assert events[-2]["usage"]["completion_tokens"] == 3 + 2
    [event] = gateway.api.events()
    assert (event.prompt_tokens, event.completion_tokens, event.usage_estimated) == (PROMPT_TOKENS, 5, True)


def test_the_event_is_durable_before_done_leaves(gateway: Gateway) -> None:
    gateway.engine.script = lambda asked: streamed(chunk("a"), usage_chunk())
    answer = gateway.chat(stream=True)
    recorded = [(data, len(gateway.api.events())) for data in answer.response]
    assert recorded[-1] == (b"data: [DONE]\n\n", 1)
    assert all(count == 0 for _, count in recorded[:-1])


def test_no_done_without_a_record(gateway: Gateway) -> None:
    gateway.engine.script = lambda asked: streamed(chunk("a"), usage_chunk())
    stream = iter(gateway.chat(stream=True).response)
    assert b'"a"' in next(stream)
    gateway.api.services.journal.close()
    rest = events_of(b"".join(stream))
    assert [event["error"]["code"] for event in rest] == ["journal_unavailable"]
    assert gateway.api.events() == []


def test_who_leaves_is_billed_what_was_generated_and_the_engine_is_told_to_stop(gateway: Gateway) -> None:
    sent = threading.Event()

    def script(asked: object) -> Iterator[bytes]:
        yield from streamed(chunk("one "), chunk("two "), done=False, end=False)
        sent.set()
        while True:
            yield b""
            gateway.engine.was_left.wait(0.01)

    gateway.engine.script = script
    answer = gateway.chat(stream=True)
    stream = iter(answer.response)
    got = next(stream)
    while b"two" not in got:
        got = next(stream)
    answer.close()
    assert gateway.engine.was_left.wait(30)
    [event] = gateway.api.events()
    assert (event.status, event.usage_estimated) == (499, True)
    assert (event.prompt_tokens, event.completion_tokens) == (PROMPT_TOKENS, 2)
    # The last piece was handed over, but nobody came for the next one: it may not have arrived.
    assert event.delivered_tokens in (0, 1)


def test_what_is_generated_and_not_delivered_is_told_apart(gateway: Gateway) -> None:
    go_on, sent = threading.Event(), threading.Event()

    def script(asked: object) -> Iterator[bytes]:
        yield from streamed(chunk("one two "), done=False, end=False)
        assert go_on.wait(30)
        yield from list(streamed(chunk("three "), chunk("four five"), done=False, end=False))[1:]
        sent.set()
        assert gateway.engine.was_left.wait(30)

    gateway.engine.script = script
    answer = gateway.chat(stream=True)
    stream = iter(answer.response)
    assert b"one two" in next(stream)
    go_on.set()
    assert b"three" in next(stream)  # whoever asks for this has taken the first
    assert sent.wait(30)
    gateway.engine.was_left.set()
    answer.close()
    [event] = gateway.api.events()
    assert (event.completion_tokens, event.delivered_tokens) == (5, 2)


def test_usage_in_every_chunk_makes_a_stream_that_is_left_exact(tmp_path: Path) -> None:
    with running_gateway(tmp_path, continuous_usage=True) as gateway:

        def script(asked: object) -> Iterator[bytes]:
            yield from streamed(chunk("abc", usage=usage(40, 11)), done=False, end=False)
            gateway.engine.was_left.wait(30)

        gateway.engine.script = script
        answer = gateway.chat(stream=True)
        next(iter(answer.response))
        answer.close()
        assert gateway.engine.asked[0].body["stream_options"]["continuous_usage_stats"] is True
        [event] = gateway.api.events()
        assert (event.prompt_tokens, event.completion_tokens, event.usage_estimated) == (40, 11, False)
        gateway.engine.was_left.set()


def test_usage_in_every_chunk_is_of_one_choice_and_not_taken_for_that_of_all(tmp_path: Path) -> None:
    with running_gateway(tmp_path, continuous_usage=True) as gateway:

        def script(asked: object) -> Iterator[bytes]:
            first = chunk("one two three", 0, usage=usage(40, 3))
            yield from streamed(first, chunk("four five", 1, usage=usage(40, 2)), done=False, end=False)
            gateway.engine.was_left.wait(30)

        gateway.engine.script = script
        answer = gateway.chat(stream=True, n=2)
        stream = iter(answer.response)
        while b"four" not in next(stream):
            pass
        answer.close()
        [event] = gateway.api.events()
        assert (event.prompt_tokens, event.completion_tokens) == (PROMPT_TOKENS, 5)
        assert event.usage_estimated
        gateway.engine.was_left.set()


@pytest.mark.parametrize("rest", [(), ({"error": {"message": "no memory"}},)], ids=["whole", "broken off"])
def test_usage_that_was_said_before_the_last_words_is_not_that_of_all(
    gateway: Gateway, rest: tuple[object, ...]
) -> None:
    early = chunk("one ", usage=usage(7, 1))
    gateway.engine.script = lambda asked: streamed(early, chunk("two "), chunk("three"), *rest)
    gateway.stream()
    [event] = gateway.api.events()
    assert (event.prompt_tokens, event.completion_tokens, event.usage_estimated) == (PROMPT_TOKENS, 3, True)


def test_usage_of_one_choice_is_not_that_of_all_at_the_end_either(gateway: Gateway) -> None:
    first, second = chunk("one two", 0, usage=usage(7, 2)), chunk("three", 1, usage=usage(7, 1))
    gateway.engine.script = lambda asked: streamed(first, second)
    gateway.stream(n=2)
    [event] = gateway.api.events()
    assert (event.prompt_tokens, event.completion_tokens, event.usage_estimated) == (PROMPT_TOKENS, 3, True)


def test_usage_with_all_choices_is_that_of_all(gateway: Gateway) -> None:
    both = chunk("one two", 0, usage=usage(7, 5))
    both["choices"] += chunk("three", 1)["choices"]
    gateway.engine.script = lambda asked: streamed(both)
    gateway.stream(n=2)
    [event] = gateway.api.events()
    assert (event.prompt_tokens, event.completion_tokens, event.usage_estimated) == (7, 5, False)


@pytest.mark.parametrize("choices", [None, 17, "two", {"index": 0}])
def test_choices_that_are_none_are_no_fault_of_ours(gateway: Gateway, choices: object) -> None:
    odd = {**chunk(), "choices": choices, "usage": usage(7, 4)}
    gateway.engine.script = lambda asked: streamed(chunk("one "), odd)
    assert gateway.stream()[-1] == "[DONE]"
    [event] = gateway.api.events()
    assert (event.status, event.prompt_tokens, event.completion_tokens) == (200, 7, 4)


@pytest.mark.parametrize(
    ("rest", "closes"),
    [
        ((b'data: {"error": {"message": "CUDA error: of many words"}}\n\n',), False),
        ((b"data: {not JSON\n\n",), False),
        ((b"data: 17\n\n",), False),
        ((), True),
    ],
    ids=["error", "garbage", "number", "closed"],
)
def test_an_engine_that_breaks_off_is_billed_what_it_generated_and_its_error_text_is_not(
    gateway: Gateway, rest: tuple[bytes, ...], closes: bool
) -> None:
    def script(asked: object) -> Iterator[bytes]:
        yield from streamed(chunk("one "), chunk("two"), *rest, done=False, end=False)
        if closes:
            raise EOFError

    gateway.engine.script = script
    events = gateway.stream()
    assert said(events) == "one two"
    assert events[-1]["error"]["code"] == "model_rejected"
    [event] = gateway.api.events()
    assert (event.status, event.completion_tokens, event.usage_estimated) == (502, 2, True)


def test_an_engine_that_fails_before_it_says_anything_costs_nothing(gateway: Gateway) -> None:
    gateway.engine.script = lambda asked: streamed({"error": {"message": "no memory"}}, end=False)
    [error] = gateway.stream()
    assert error["error"]["code"] == "model_rejected"
    [event] = gateway.api.events()
    assert (event.status, event.total_tokens) == (502, 0)


def test_tokens_without_a_text_are_billed_when_an_engine_breaks_off_as_it_counted_them(
    gateway: Gateway,
) -> None:
    gateway.engine.script = lambda asked: streamed(
        chunk("", usage=usage(7, 5)), {"error": {"message": "no memory"}}
    )
    gateway.stream()
    [event] = gateway.api.events()
    assert (event.status, event.prompt_tokens, event.completion_tokens) == (502, 7, 5)
    assert not event.usage_estimated


def test_an_engine_that_falls_silent_is_left(tmp_path: Path) -> None:
    with running_gateway(tmp_path, idle_seconds=0.1) as gateway:

        def script(asked: object) -> Iterator[bytes]:
            yield from streamed(chunk("one"), done=False, end=False)
            gateway.engine.was_left.wait(30)

        gateway.engine.script = script
        events = gateway.stream()
        assert events[-1]["error"]["code"] == "model_timeout"
        [event] = gateway.api.events()
        assert (event.status, event.completion_tokens) == (504, 1)
        gateway.engine.was_left.set()


def test_a_stop_bills_a_stream_whose_client_takes_nothing(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "_TO_BE_TOLD_SECONDS", 0.0)

    def script(asked: object) -> Iterator[bytes]:
        yield b"".join(streamed(chunk("one "), chunk("two "), done=False, end=False))
        gateway.engine.was_left.wait(30)

    gateway.engine.script = script
    stream = iter(gateway.chat(stream=True).response)
    got = next(stream)
    while b"two" not in got:
        got += next(stream)
    gateway.api.services.cut_streams()
    [event] = gateway.api.events()
    assert (event.status, event.completion_tokens, event.usage_estimated) == (503, 2, True)
    assert held(gateway) == (0, 0)
    gateway.engine.was_left.set()
    assert list(stream) == []
    assert gateway.api.events() == [event]


def test_a_client_that_takes_nothing_for_long_is_no_silence_of_the_engine(tmp_path: Path) -> None:
    with running_gateway(tmp_path, idle_seconds=0.5) as gateway:
        go_on, sent = threading.Event(), threading.Event()

        def script(asked: object) -> Iterator[bytes]:
            first, second, *rest = streamed(chunk("one "), chunk("two"), usage_chunk(usage(7, 2)))
            yield first + second
            assert go_on.wait(30)
            yield b"".join(rest)
            sent.set()

        gateway.engine.script = script
        stream = iter(gateway.chat(stream=True).response)
        got = next(stream)
        go_on.set()
        assert sent.wait(30)
        time.sleep(0.6)
        events = events_of(got + b"".join(stream))
        assert events[-1] == "[DONE]"
        [event] = gateway.api.events()
        assert (event.status, event.completion_tokens, event.delivered_tokens) == (200, 2, None)


def test_while_an_engine_is_silent_the_client_sees_that_the_connection_lives(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "_HEARTBEAT_SECONDS", 0.02)
    go_on = threading.Event()

    def script(asked: object) -> Iterator[bytes]:
        first, *rest = streamed(chunk("late"), usage_chunk())
        yield first
        assert go_on.wait(30)
        yield from rest

    gateway.engine.script = script
    stream = iter(gateway.chat(stream=True).response)
    assert next(stream) == b": waiting\n\n"
    go_on.set()
    assert b"[DONE]" in b"".join(stream)


def test_an_engine_that_answers_no_stream_is_refused(gateway: Gateway) -> None:
    answer = gateway.chat(stream=True)
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (502, "model_rejected")
    [event] = gateway.api.events()
    assert (event.status, event.total_tokens) == (502, 0)


def test_lines_are_read_however_they_are_cut(gateway: Gateway) -> None:
    whole_stream = b"".join(list(streamed(chunk("one "), b": comment\r\n\r\n", chunk("two"), usage_chunk())))
    head, _, body = whole_stream.partition(b"\r\n\r\n")

    def script(asked: object) -> Iterator[bytes]:
        yield head + b"\r\n\r\n"
        for at in range(0, len(body), 7):
            yield body[at : at + 7]

    gateway.engine.script = script
    events = gateway.stream()
    assert said(events) == "one two"
    assert gateway.api.events()[0].total_tokens == 10


def test_tool_calls_and_reasoning_are_counted(gateway: Gateway) -> None:
    call = {"index": 0, "function": {"name": "find", "arguments": '{"what": "it"}'}}
    gateway.engine.script = lambda asked: streamed(
        {**chunk(), "choices": [{"index": 0, "delta": {"reasoning": "so so", "reasoning_content": "so so"}}]},
        {**chunk(), "choices": [{"index": 0, "delta": {"tool_calls": [call]}}]},
    )
    gateway.stream()
    [event] = gateway.api.events()
    assert event.completion_tokens == 3  # so · sofind{"what": · "it"}


def test_a_place_is_given_back_whatever_happens(gateway: Gateway) -> None:
    gateway.engine.script = lambda asked: streamed(chunk("a"), usage_chunk())
    queue = gateway.api.services.queue
    gateway.stream()
    left = gateway.chat(stream=True)
    next(iter(left.response))
    assert queue.under_way(MODEL) == 1
    left.close()
    gateway.engine.script = lambda asked: [b"nonsense\r\n\r\n"]
    gateway.chat()
    wait_until(lambda: queue.under_way(MODEL) == 0)
    assert [event.status for event in gateway.api.events()] == [200, 499, 502]


def test_nonsense_that_waits_when_the_client_leaves_costs_no_place_and_no_bill(gateway: Gateway) -> None:
    nonsense = b'data: {"choices": [], "more": ' + b"[" * 300 + b"]" * 300 + b"}\n\n"
    go_on = threading.Event()

    def script(asked: object) -> Iterator[bytes]:
        yield from streamed(chunk("one "), done=False, end=False)
        assert go_on.wait(30)
        yield from list(streamed(nonsense, done=False, end=False))[1:]
        assert gateway.engine.was_left.wait(30)

    gateway.engine.script = script
    answer = gateway.chat(stream=True)
    assert b"one" in next(iter(answer.response))
    go_on.set()
    [under_way] = gateway.api.services.engines[MODEL].upstream._under_way
    wait_until(lambda: address.is_readable(under_way._connection))
    gateway.engine.was_left.set()
    answer.close()
    [event] = gateway.api.events()
    assert (event.status, event.completion_tokens) == (499, 1)
    assert held(gateway) == (0, 0)


@pytest.fixture
def short_leases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    """A gateway whose leases last a second."""
    with running_gateway(tmp_path, {"quota_lease_seconds": 0.5}) as gateway:
        monkeypatch.setattr(gateway.api.services.quotas, "_lease_seconds", 1.0)
        yield gateway


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("said_first", ["nothing", "the head", "a part"])
def test_tokens_are_held_as_long_as_the_engine_takes(
    short_leases: Gateway, stream: bool, said_first: str
) -> None:
    gateway, quotas = short_leases, short_leases.api.services.quotas
    pieces = list(streamed(chunk("a"), usage_chunk())) if stream else _cut(whole(completion("a"))[0])
    held_while_silent: list[int] = []

    def script(asked: object) -> Iterator[bytes]:
        first = ("nothing", "the head", "a part").index(said_first)
        yield from pieces[:first]
        for _ in range(30):
            time.sleep(0.1)
            held_while_silent.append(quotas.reserved_tokens())
        yield from pieces[first:]

    gateway.engine.script = script
    answer = gateway.chat(stream=stream, max_tokens=10)
    assert answer.status_code == 200, answer.data
    assert b"a" in answer.data
    assert set(held_while_silent) == {PROMPT_TOKENS + 10}
    assert held(gateway) == (0, 0)


def test_tokens_are_held_while_the_client_of_a_stream_takes_nothing(short_leases: Gateway) -> None:
    gateway, quotas = short_leases, short_leases.api.services.quotas
    gateway.engine.script = lambda asked: streamed(chunk("a"), usage_chunk())
    answer = gateway.chat(stream=True, max_tokens=10)
    stream = iter(answer.response)
    next(stream)
    time.sleep(2)
    assert quotas.reserved_tokens() == PROMPT_TOKENS + 10
    answer.close()
    assert held(gateway) == (0, 0)
    assert not gateway.api.services.holding._held


def _cut(answer: bytes) -> list[bytes]:
    """Its head, some of its body, and the rest."""
    head, separator, body = answer.partition(b"\r\n\r\n")
    return [head + separator, body[:5], body[5:]]


def test_a_connection_whose_answer_was_not_read_whole_is_never_given_to_another(gateway: Gateway) -> None:
    def script(asked: object) -> Iterator[bytes]:
        yield b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
        yield from streamed(chunk("secret "), done=False, end=False)
        gateway.engine.was_left.wait(30)

    gateway.engine.script = script
    answer = gateway.chat(stream=True)
    assert b"secret" in next(iter(answer.response))
    answer.close()
    gateway.engine.was_left.set()
    gateway.engine.script = lambda asked: streamed(chunk("mine"), usage_chunk())
    assert said(gateway.stream()) == "mine"
    assert gateway.engine.connections == 2


def test_a_kept_connection_is_closed_in_time_though_nobody_asks_again(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(address, "_IDLE_SECONDS", 0.05)
    assert gateway.chat().status_code == 200
    wait_until(lambda: gateway.engine.open_connections() == 0)
