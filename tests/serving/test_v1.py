import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from serving.engines.tokens import EngineTokenizer
from tests.apis import USER, Api, running_app
from tests.engines import (
    CHAT_TEMPLATE,
    MODEL,
    Asked,
    StandInEngine,
    chunk,
    completion,
    stand_in_engine,
    streamed,
    usage,
    usage_chunk,
    whole,
    write_engines,
    write_tokenizer,
)

HELLO = [{"role": "user", "content": "how are you"}]  # <user> how are you </> <assistant>: 6 tokens
PROMPT_TOKENS = 6


class Gateway:
    """The API before a stand-in for an engine."""

    def __init__(self, api: Api, engine: StandInEngine) -> None:
        self.api = api
        self.engine = engine

    def post(self, path: str, **body: Any) -> Any:
        """POST as user-a."""
        return self.api.client.post(f"/v1{path}", json={"model": MODEL, **body}, headers=USER)

    def chat(self, **body: Any) -> Any:
        """A chat."""
        return self.post("/chat/completions", **{"messages": HELLO, **body})

    def stream(self, **body: Any) -> list[Any]:
        """The events of a streamed chat."""
        answer = self.chat(stream=True, **body)
        assert answer.status_code == 200, answer.data
        return events_of(answer.data)


def held(gateway: Gateway) -> tuple[int, int]:
    """Places at the engine, and tokens of quotas, that requests hold."""
    services = gateway.api.services
    return services.queue.under_way(MODEL), services.quotas.reserved_tokens()


def events_of(data: bytes) -> list[Any]:
    """The data of server-sent events: objects, and `[DONE]`."""
    payloads = [event.removeprefix(b"data: ") for event in data.split(b"\n\n") if event.startswith(b"data")]
    return ["[DONE]" if payload == b"[DONE]" else json.loads(payload) for payload in payloads]


@contextmanager
def running_gateway(
    tmp_path: Path, settings: Mapping[str, Any] | None = None, **entry: Any
) -> Iterator[Gateway]:
    """The API before a stand-in, of which the engines' file says `entry`."""
    with stand_in_engine() as engine:
        file = write_engines(tmp_path, {"addresses": [engine.address], **entry})
        with running_app(tmp_path, engines_file=file, **(settings or {})) as api:
            yield Gateway(api, engine)


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    with running_gateway(tmp_path) as running:
        yield running


def test_models_and_fields_are_told_as_they_are_spelt(gateway: Gateway) -> None:
    def message(**body: Any) -> str:
        told: str = gateway.chat(**body).get_json()["error"]["message"]
        return told

    assert message(max_tokens=10**6).startswith(f"The model {MODEL} answers with at most ")
    assert message(stream=5) == '"stream" must be true or false.'
    assert message(n="x").startswith('"n" must be a whole number')
    assert message(messages=[]).startswith('"messages" must be a list')
    assert message(model=None).startswith('"model" must be the name of a model')


def test_a_chat_is_passed_on_answered_and_recorded(gateway: Gateway) -> None:
    gateway.engine.script = lambda asked: whole(
        completion(
            "very well",
            usage(
                20,
                9,
                prompt_tokens_details={"cached_tokens": 16},
                completion_tokens_details={"reasoning_tokens": 7},
            ),
        )
    )
    answer = gateway.chat(temperature=0.5)
    assert answer.status_code == 200
    document = answer.get_json()
    assert document["model"] == MODEL
    assert document["choices"][0]["message"]["content"] == "very well"
    assert document["usage"]["total_tokens"] == 29
    [asked] = gateway.engine.asked
    assert asked.line == "POST /v1/chat/completions HTTP/1.1"
    assert asked.body == {"model": "name-there", "messages": HELLO, "temperature": 0.5}
    [event] = gateway.api.events()
    assert event.id == answer.headers["X-Request-ID"]
    assert (event.operation, event.model, event.model_version) == ("chat", MODEL, "2026-11")
    assert (event.prompt_tokens, event.completion_tokens) == (20, 9)
    assert (event.cached_tokens, event.reasoning_tokens) == (16, 7)
    assert (event.status, event.usage_estimated, event.delivered_tokens) == (200, False, None)


@pytest.mark.parametrize("said", [{}, {"prompt_tokens": 0, "completion_tokens": 0}, {"prompt_tokens": "7"}])
def test_usage_that_the_engine_does_not_say_is_counted_and_marked(
    gateway: Gateway, said: dict[str, Any]
) -> None:
    gateway.engine.script = lambda asked: whole(completion("one two three four", said))
    answer = gateway.chat().get_json()
    assert answer["usage"]["prompt_tokens"] == PROMPT_TOKENS
    assert answer["usage"]["completion_tokens"] == 4
    [event] = gateway.api.events()
    assert (event.prompt_tokens, event.completion_tokens, event.usage_estimated) == (PROMPT_TOKENS, 4, True)


@pytest.mark.parametrize(("prompt", "completion_tokens"), [(7, 2001), (2001, 3)])
@pytest.mark.parametrize("stream", [False, True])
def test_usage_beyond_the_context_of_all_choices_can_not_be_true(
    gateway: Gateway, prompt: int, completion_tokens: int, stream: bool
) -> None:
    def script(asked: Asked) -> Iterable[bytes]:
        said = usage(prompt, completion_tokens)
        return streamed(chunk("one two"), usage_chunk(said)) if stream else whole(completion("one two", said))

    gateway.engine.script = script
    told = gateway.chat(stream=stream, n=2)  # of 1000 tokens at most each
    assert b"2001" not in told.data
    [event] = gateway.api.events()
    assert (event.prompt_tokens, event.completion_tokens, event.usage_estimated) == (PROMPT_TOKENS, 2, True)


def test_a_whole_answer_tells_what_is_billed_though_its_engine_contradicts_itself(gateway: Gateway) -> None:
    said = {**usage(7, 2, prompt_tokens_details={"cached_tokens": 99}, queue_ms=5), "total_tokens": 100}
    gateway.engine.script = lambda asked: whole(completion("one two", said))
    told = gateway.chat().get_json()["usage"]
    [event] = gateway.api.events()
    assert (told["total_tokens"], event.total_tokens) == (9, 9)
    assert (told["prompt_tokens_details"], event.cached_tokens) == ({"cached_tokens": 0}, 0)
    assert told["queue_ms"] == 5  # what else the engine tells


def test_usage_as_long_as_the_context_of_all_choices_is_believed(gateway: Gateway) -> None:
    gateway.engine.script = lambda asked: whole(completion("one two", usage(7, 2000)))
    gateway.chat(n=2)
    [event] = gateway.api.events()
    assert (event.completion_tokens, event.usage_estimated) == (2000, False)


def test_completions_of_several_prompts(gateway: Gateway) -> None:
    choices = [{"index": number, "text": "four words and more"} for number in range(2)]
    gateway.engine.script = lambda asked: whole({"object": "text_completion", "choices": choices})
    answer = gateway.post("/completions", prompt=["one two", [5, 6, 7]])
    assert answer.get_json()["usage"]["total_tokens"] == 5 + 8
    [event] = gateway.api.events()
    assert (event.operation, event.prompt_tokens, event.completion_tokens) == ("text_completion", 5, 8)


@pytest.mark.parametrize(("said", "tokens"), [({"prompt_tokens": 9, "total_tokens": 9}, 9), (None, 4)])
def test_embeddings(gateway: Gateway, said: object, tokens: int) -> None:
    data = [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}]
    gateway.engine.script = lambda asked: whole({"object": "list", "data": data, "usage": said})
    answer = gateway.post("/embeddings", input=["one two", "three four"]).get_json()
    assert answer["data"] == data
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    [event] = gateway.api.events()
    assert (event.operation, event.prompt_tokens, event.completion_tokens) == ("embeddings", tokens, 0)
    assert event.usage_estimated is (said is None)


def test_models_are_listed(gateway: Gateway) -> None:
    listed = gateway.api.client.get("/v1/models", headers=USER).get_json()
    assert [one["id"] for one in listed["data"]] == [MODEL, "review-sentiment"]  # engines, then what we serve
    assert gateway.api.client.get(f"/v1/models/{MODEL}", headers=USER).get_json() == listed["data"][0]
    unknown = gateway.api.client.get("/v1/models/other", headers=USER)
    assert (unknown.status_code, unknown.get_json()["error"]["code"]) == (404, "model_not_found")
    assert gateway.api.client.get("/v1/models").status_code == 401


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "param"),
    [
        ("/chat/completions", {"model": "other"}, 404, "model_not_found", None),
        ("/chat/completions", {"model": 5}, 400, "invalid_value", "model"),
        ("/chat/completions", {"messages": []}, 400, "invalid_value", "messages"),
        ("/chat/completions", {"messages": [{"role": 1}]}, 400, "invalid_value", "messages[0].role"),
        ("/chat/completions", {"max_tokens": 0}, 400, "invalid_value", "max_tokens"),
        ("/chat/completions", {"max_tokens": 1001}, 400, "invalid_value", "max_tokens"),
        ("/chat/completions", {"n": 129}, 400, "invalid_value", "n"),
        ("/chat/completions", {"stream": "yes"}, 400, "invalid_value", "stream"),
        ("/chat/completions", {"stream_options": {}}, 400, "invalid_value", "stream_options"),
        (
            "/chat/completions",
            {"messages": [{"role": "user", "content": "a " * 1000}]},
            400,
            "context_length_exceeded",
            None,
        ),
        ("/completions", {"prompt": ""}, 400, "invalid_value", "prompt"),
        ("/completions", {"prompt": [["a"]]}, 400, "invalid_value", "prompt"),
        ("/embeddings", {"input": "a " * 1001}, 400, "context_length_exceeded", None),
        ("/nothing", {}, 404, "not_found", None),
    ],
)
def test_bad_input_is_refused_in_the_form_of_openai_and_not_metered(
    gateway: Gateway, path: str, body: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    answer = gateway.post(path, **({"messages": HELLO} | body))
    error = answer.get_json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
    assert gateway.engine.asked == []
    assert gateway.api.events() == []


def test_a_model_is_asked_only_what_it_is_for(tmp_path: Path) -> None:
    with running_gateway(tmp_path, kinds=["embeddings"]) as gateway:
        answer = gateway.chat()
        assert (answer.status_code, answer.get_json()["error"]["code"]) == (400, "unsupported_by_model")


@pytest.mark.parametrize(
    ("said", "status", "code"),
    [
        (whole({"error": {"message": "too hot"}}, 400), 400, "refused_by_model"),
        (whole({"detail": "no such token"}, 422), 400, "refused_by_model"),
        (whole({"error": "who are you"}, 401), 502, "model_rejected"),
        (whole(b"<html>", 404), 502, "model_rejected"),
        (whole({}, 429, "Retry-After: 17\r\n"), 503, "model_overloaded"),
        (whole({}, 500), 502, "model_rejected"),
        (whole({}, 504), 504, "model_timeout"),
        (whole(b"not JSON"), 502, "model_rejected"),
        (whole([1]), 502, "model_rejected"),
        (whole(b'{"choices": [], "more": ' + b"[" * 300 + b"]" * 300 + b"}"), 502, "model_rejected"),
        (whole({"error": {"message": "failed"}}), 502, "model_rejected"),
        ([b"SSH-2.0-OpenSSH_9\r\n\r\n"], 502, "model_rejected"),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"], 502, "model_rejected"),
        ([b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 20_000], 502, "model_rejected"),
        ([], 502, "model_rejected"),
    ],
)
def test_what_an_engine_does_wrong_costs_nothing_and_is_recorded_once(
    gateway: Gateway, said: list[bytes], status: int, code: str
) -> None:
    def script(asked: object) -> Iterator[bytes]:
        yield from said
        if code == "model_rejected" and len(said) < 2:
            raise EOFError  # closes the connection

    gateway.engine.script = script
    answer = gateway.chat()
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (status, code)
    [event] = gateway.api.events()
    assert (event.status, event.total_tokens) == (status, 0)
    assert event.id == answer.headers["X-Request-ID"]
    assert held(gateway) == (0, 0)
    if code == "model_overloaded":
        assert answer.headers["Retry-After"] == "17"
    assert len(gateway.engine.asked) == 1


def test_an_engine_that_names_an_endless_wait_is_given_an_hour(gateway: Gateway) -> None:
    gateway.engine.script = lambda asked: whole({}, 503, f"Retry-After: {'9' * 5000}\r\n")
    answer = gateway.chat()
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "3600")


@pytest.mark.parametrize("failure", [{"error": {"message": "no memory"}}, {"object": "error"}])
def test_an_error_beside_choices_is_no_answer(gateway: Gateway, failure: dict[str, Any]) -> None:
    gateway.engine.script = lambda asked: whole({**completion("no memory"), **failure})
    answer = gateway.chat()
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (502, "model_rejected")
    [event] = gateway.api.events()
    assert (event.status, event.total_tokens, held(gateway)) == (502, 0, (0, 0))


def test_a_call_of_a_function_in_the_old_form_is_counted(gateway: Gateway) -> None:
    message = {"role": "assistant", "content": None, "function_call": {"name": "find", "arguments": "{} {}"}}
    gateway.engine.script = lambda asked: whole({"choices": [{"index": 0, "message": message}]})
    gateway.chat()
    [event] = gateway.api.events()
    assert (event.completion_tokens, event.usage_estimated) == (3, True)


@pytest.mark.parametrize("tool_calls", [5, True, {"function": 1}, [1, {"function": 2}]])
def test_tool_calls_that_are_none_are_passed_on_and_not_counted(gateway: Gateway, tool_calls: object) -> None:
    message = {"role": "assistant", "content": "one two", "tool_calls": tool_calls}
    gateway.engine.script = lambda asked: whole({"choices": [{"index": 0, "message": message}]})
    answer = gateway.chat()
    assert answer.get_json()["choices"][0]["message"] == message
    [event] = gateway.api.events()
    assert (event.completion_tokens, held(gateway)) == (2, (0, 0))


@pytest.mark.parametrize("chat_template", [CHAT_TEMPLATE, "{{ tools | tojson }}", None])
@pytest.mark.parametrize(
    ("path", "field"), [("/embeddings", "user"), ("/completions", "user"), ("/chat/completions", "tools")]
)
@pytest.mark.parametrize("depth", [300, 1000])
def test_a_body_that_is_nested_too_deeply_is_refused_and_holds_nothing(
    tmp_path: Path, path: str, field: str, depth: int, chat_template: str | None
) -> None:
    with running_gateway(tmp_path) as gateway:
        tokenizer = write_tokenizer(tmp_path / "other", chat_template)
        target = gateway.api.services.engines[MODEL]
        target.tokenizer = EngineTokenizer(target.engine.model_copy(update={"tokenizer": str(tokenizer)}))
        body = {"model": MODEL, "messages": HELLO, "input": "a", "prompt": "a"}
        deep = b"[" * depth + b"]" * depth
        answer = gateway.api.client.post(
            f"/v1{path}",
            data=b'%s, "%s": %s}' % (orjson.dumps(body)[:-1], field.encode(), deep),
            headers=USER,
        )
        assert (answer.status_code, answer.get_json()["error"]["code"]) == (400, "bad_request")
        assert held(gateway) == (0, 0)
        assert gateway.engine.asked == []
        assert gateway.api.events() == []


def test_an_engine_that_is_away_is_a_503(gateway: Gateway) -> None:
    gateway.engine.close()
    answer = gateway.chat()
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (503, "model_unavailable")
    [event] = gateway.api.events()
    assert (event.status, event.total_tokens) == (503, 0)


def test_an_engine_that_does_not_answer_in_time_is_left(tmp_path: Path) -> None:
    with running_gateway(tmp_path, first_token_seconds=0.05) as gateway:

        def script(asked: object) -> Iterator[bytes]:
            gateway.engine.was_left.wait(30)
            yield b""

        gateway.engine.script = script
        answer = gateway.chat()
        assert (answer.status_code, answer.get_json()["error"]["code"]) == (504, "model_timeout")
        [event] = gateway.api.events()
        assert (event.status, event.total_tokens) == (504, 0)
        gateway.engine.was_left.set()


def test_a_limit_that_the_client_does_not_name_is_the_operators(tmp_path: Path) -> None:
    with running_gateway(tmp_path, max_output_tokens=50) as gateway:
        gateway.chat()
        gateway.chat(max_completion_tokens=40)
        assert [asked.body.get("max_tokens") for asked in gateway.engine.asked] == [50, None]
        assert gateway.chat(max_tokens=51).status_code == 400


def test_the_key_of_the_engine_comes_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAT_KEY", "sk-there")
    with running_gateway(tmp_path, api_key_variable="CHAT_KEY") as gateway:
        gateway.chat()
        assert gateway.engine.asked[0].headers["authorization"] == "Bearer sk-there"


def test_no_engine_is_asked_when_usage_can_not_be_recorded(gateway: Gateway) -> None:
    gateway.api.services.journal.close()
    answer = gateway.chat()
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (503, "journal_unavailable")
    assert gateway.engine.asked == []


def test_connections_to_the_engine_are_kept(gateway: Gateway) -> None:
    for _ in range(3):
        gateway.chat()
    gateway.engine.script = lambda asked: streamed(chunk("a"), usage_chunk())
    gateway.stream()
    gateway.stream()
    assert gateway.engine.connections == 1


def test_a_kept_connection_is_given_to_one_request_at_a_time(gateway: Gateway) -> None:
    gateway.engine.script = lambda asked: streamed(chunk("a"), usage_chunk())
    gateway.stream()
    upstream = gateway.api.services.engines[MODEL].upstream
    first = upstream.post("/chat/completions", b"{}", {}, 30)
    second = upstream.post("/chat/completions", b"{}", {}, 30)
    assert gateway.engine.connections == 2
    for answer in (first, second):
        upstream.done(answer)
        upstream.done(answer)
