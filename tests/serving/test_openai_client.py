"""The official `openai` client, unchanged, before the gateway, before a real engine."""

from collections.abc import Iterator

import openai
import pytest

from serving.access import keys
from serving.access.store import open_store
from serving.engines.file import read_engines
from serving.engines.models import EngineModel
from tests.apis import ApiProcess, events_in
from tests.engines import write_engines
from tests.modelservers import wait_until
from tests.real_engine import needs_engine, real_engine

pytestmark = needs_engine
HELLO: list[openai.types.chat.ChatCompletionMessageParam] = [
    {"role": "system", "content": "ba do fi"},
    {"role": "user", "content": "gu ke lo"},
]


class Session:
    """A client of a gateway before a real engine."""

    def __init__(self, api: ApiProcess, model: EngineModel, secret: str) -> None:
        self.api = api
        self.model = model
        self.client = openai.OpenAI(base_url=f"{api.address}/v1", api_key=secret, max_retries=0)

    def event(self, request_id: str | None):  # type: ignore[no-untyped-def]  # a UsageEvent
        """The one event of this request."""
        [event] = [event for event in events_in(self.api.journal_dir) if event.id == request_id]
        return event


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    folder = tmp_path_factory.mktemp("engine")
    with real_engine(folder) as (address, tokenizer):
        file = write_engines(
            folder,
            {
                "addresses": [address],
                "tokenizer": str(tokenizer),
                "engine_model": str(tokenizer),
                "kinds": ["chat", "completions"],
                "max_context_tokens": 4096,
            },
        )
        store = open_store(f"sqlite:///{folder / 'access.db'}")
        terms = keys.Terms(user="anna", project="search", models=("chat", "other"))
        _, secret = keys.create(store, folder / "acts", terms, "laptop", None, "root")
        store.dispose()
        api = ApiProcess(folder, folder, "127.0.0.1:9", None, engines_file=str(file))
        try:
            api.wait_until_listening()
            yield Session(api, EngineModel(read_engines(file)[0]), secret)
        finally:
            api.kill()


def test_models(session: Session) -> None:
    assert [model.id for model in session.client.models.list()] == ["chat"]
    assert session.client.models.retrieve("chat").owned_by == "tallybook"


def test_a_chat_has_the_engines_usage_and_our_own_count_agrees(session: Session) -> None:
    answer = session.client.chat.completions.create(model="chat", messages=HELLO, max_tokens=9)
    assert answer.model == "chat"
    assert answer.usage is not None
    event = session.event(answer._request_id)
    assert (event.prompt_tokens, event.completion_tokens) == (answer.usage.prompt_tokens, 9)
    assert (event.operation, event.status, event.usage_estimated) == ("chat", 200, False)
    assert (event.user, event.project) == ("anna", "search")
    assert event.api_key_id is not None
    tokenizer = session.model.tokenizer
    assert tokenizer.chat([dict(message) for message in HELLO], None, None).tokens == event.prompt_tokens
    assert tokenizer.count(answer.choices[0].message.content or "") == 9


@pytest.mark.parametrize("asks", [True, False])
def test_a_stream_says_its_usage_to_whom_asked(session: Session, asks: bool) -> None:
    stream = session.client.chat.completions.create(
        model="chat",
        messages=HELLO,
        max_tokens=9,
        stream=True,
        stream_options={"include_usage": True} if asks else openai.omit,
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert session.model.tokenizer.count(text) == 9
    told = [chunk.usage for chunk in chunks if chunk.usage is not None]
    assert [usage.completion_tokens for usage in told] == ([9] if asks else [])
    event = session.event(stream.response.headers["x-request-id"])
    assert (event.completion_tokens, event.usage_estimated) == (9, False)
    assert 0 < event.time_to_first_token_seconds <= event.duration_seconds


def test_a_stream_that_is_cut_off_is_billed_what_was_generated(session: Session) -> None:
    with session.client.chat.completions.create(
        model="chat", messages=HELLO, max_tokens=3000, stream=True
    ) as stream:
        got = [next(stream) for _ in range(5)]
    request_id = stream.response.headers["x-request-id"]
    wait_until(lambda: any(event.id == request_id for event in events_in(session.api.journal_dir)))
    event = session.event(request_id)
    heard = "".join(chunk.choices[0].delta.content or "" for chunk in got)
    assert (event.status, event.usage_estimated) == (499, True)
    assert session.model.tokenizer.count(heard) <= event.delivered_tokens + 1 <= event.completion_tokens + 1
    assert event.completion_tokens < 3000
    # The engine is free again: it was told to stop.
    answer = session.client.chat.completions.create(model="chat", messages=HELLO, max_tokens=2)
    assert answer.usage is not None


def test_completions(session: Session) -> None:
    answer = session.client.completions.create(model="chat", prompt="ba do fi", max_tokens=4)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 4)
    assert session.event(answer._request_id).operation == "text_completion"


def test_errors_are_those_of_the_client(session: Session) -> None:
    chat = session.client.chat.completions
    with pytest.raises(openai.NotFoundError) as unknown:
        chat.create(model="other", messages=HELLO)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.PermissionDeniedError) as not_allowed:
        chat.create(model="secret", messages=HELLO)
    assert not_allowed.value.code == "model_not_allowed"
    with pytest.raises(openai.BadRequestError) as too_long:
        chat.create(model="chat", messages=[{"role": "user", "content": "ba " * 5000}])
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as no_messages:
        chat.create(model="chat", messages=[])
    assert no_messages.value.param == "messages"
    with pytest.raises(openai.BadRequestError) as other_kind:
        session.client.embeddings.create(model="chat", input="ba")
    assert other_kind.value.code == "unsupported_by_model"
    with pytest.raises(openai.InternalServerError) as failed:  # this engine fails with 500 on such a value
        chat.create(model="chat", messages=HELLO, extra_body={"frequency_penalty": "x"})
    assert failed.value.code == "model_rejected"
    event = session.event(failed.value.request_id)
    assert (event.status, event.total_tokens) == (502, 0)
    nobody = openai.OpenAI(base_url=f"{session.api.address}/v1", api_key="no", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        nobody.models.list()
