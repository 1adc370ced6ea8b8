"""/v1/embeddings of a model on the model server: the real one over gRPC, and a stand-in that can fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from pydantic import ValidationError

from serving.access import keys
from serving.access.store import open_store
from serving.engines.file import EnginesFileError
from serving.engines.models import check_engines
from serving.settings import ServingSettings
from serving.tokenization import ModelVersion, load_version
from tests.apis import MODEL, USER, Api, ApiProcess, events_in, export, running_app
from tests.engines import MODEL as ENGINE
from tests.engines import write_engines
from tests.modelservers import running_server
from tests.savedmodels import (
    EMBEDS,
    MAX_LENGTH_TOKENS,
    export_tiny_embedder,
    tiny_embedding,
    write_assets,
)

EMBEDDER = "embedder"
NEVER = 3600


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with running_embedder(tmp_path) as running:
        yield running


def running_embedder(tmp_path: Path, **settings: Any) -> Any:
    """The API before a stand-in that has two versions of the embedder, exported here, and looks only once."""
    models_dir = tmp_path / "models"
    export(models_dir, 1)
    for version in (1, 2):
        write_assets(models_dir / EMBEDDER / str(version) / "assets.extra", EMBEDDER, version, **EMBEDS)
    given = {"embedding_models": (EMBEDDER,), "version_poll_seconds": NEVER, **settings}
    return running_app(tmp_path, models_dir=models_dir, **given)


def counted_by(models_dir: Path, version: int = 1) -> ModelVersion:
    return load_version(models_dir, EMBEDDER, version, "embedding")


def ask(api: Api, given: Any, headers: Any = None, **more: Any) -> Any:
    body = {"model": EMBEDDER, "input": given, **more}
    return api.client.post("/v1/embeddings", json=body, headers={**USER, **(headers or {})})


def left_today(api: Api) -> int:
    quotas = api.client.get("/v1/quota", headers=USER).get_json()["quotas"]
    return int(quotas["user_day_tokens"]["remaining"])


def test_the_official_client_gets_the_vectors_of_the_real_model_server(tmp_path: Path) -> None:
    models_dir = tmp_path / "models"
    export_tiny_embedder(models_dir, EMBEDDER)
    store = open_store(f"sqlite:///{tmp_path / 'access.db'}")
    _, secret = keys.create(
        store,
        tmp_path / "acts",
        keys.Terms(user="anna", project="search", models=(EMBEDDER,)),
        "k",
        None,
        "root",
    )
    _, other = keys.create(
        store,
        tmp_path / "acts",
        keys.Terms(user="anna", project="search", models=(MODEL,)),
        "o",
        None,
        "root",
    )
    store.dispose()
    texts = ["hotel", "a clean room and good service", "很好"]
    counter = counted_by(models_dir)
    expected = [tiny_embedding(counter.ids(text)) for text in texts]
    tokens = sum(len(counter.ids(text)) for text in texts)
    with running_server(models_dir) as server:
        process = ApiProcess(tmp_path, models_dir, server.address, embedding_models=f'["{EMBEDDER}"]')
        try:
            process.wait_until_listening()
            base_url = f"{process.address}/v1"
            client = openai.OpenAI(base_url=base_url, api_key=secret, max_retries=0)
            [entry] = client.models.list()
            assert (entry.id, client.models.retrieve(EMBEDDER).owned_by) == (EMBEDDER, "tallybook")
            by_default = client.embeddings.create(model=EMBEDDER, input=texts)
            as_floats = client.embeddings.create(model=EMBEDDER, input=texts, encoding_format="float")
            for answer in (by_default, as_floats):
                assert (answer.object, answer.model) == ("list", EMBEDDER)
                assert [one.index for one in answer.data] == [0, 1, 2]
                np.testing.assert_allclose([one.embedding for one in answer.data], expected, atol=1e-6)
                assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (tokens, tokens)
            alone = client.embeddings.create(model=EMBEDDER, input=counter.ids("hotel"))
            np.testing.assert_allclose(alone.data[0].embedding, expected[0], atol=1e-6)
            with pytest.raises(openai.BadRequestError) as too_long:
                client.embeddings.create(model=EMBEDDER, input=["hotel", "很" * MAX_LENGTH_TOKENS])
            assert too_long.value.code == "context_length_exceeded"
            with pytest.raises(openai.PermissionDeniedError):
                openai.OpenAI(base_url=base_url, api_key=other, max_retries=0).embeddings.create(
                    model=EMBEDDER, input="hotel"
                )
            events = events_in(process.journal_dir)
        finally:
            process.kill()
    assert [event.prompt_tokens for event in events] == [tokens, tokens, len(counter.ids("hotel"))]
    event = events[0]
    assert event.id == by_default._request_id
    assert (event.operation, event.model, event.model_version) == ("embeddings", EMBEDDER, "1")
    assert (event.completion_tokens, event.usage_estimated, event.status) == (0, False, 200)
    assert (event.user, event.project, event.tokenizer_fingerprint) == (
        "anna",
        "search",
        counter.tokenizer_fingerprint,
    )


def test_many_inputs_are_a_few_calls_one_event_and_keep_their_order(api: Api, tmp_path: Path) -> None:
    counter = counted_by(tmp_path / "models")
    before = left_today(api)
    texts = ["a" * 7 + " b" * (number * 37 % 50) for number in range(70)]
    answer = ask(api, texts).get_json()
    ids = [counter.ids(text) for text in texts]
    assert [one["index"] for one in answer["data"]] == list(range(70))
    np.testing.assert_allclose(
        [one["embedding"] for one in answer["data"]], [tiny_embedding(one) for one in ids], atol=1e-6
    )
    assert api.server.batches == [32, 32, 6]
    [event] = api.events()
    assert event.prompt_tokens == event.total_tokens == sum(map(len, ids)) == answer["usage"]["total_tokens"]
    assert before - left_today(api) == event.total_tokens


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"input": ["a", "b " * MAX_LENGTH_TOKENS]}, "context_length_exceeded", None),
        ({"input": [5] * (MAX_LENGTH_TOKENS + 1)}, "context_length_exceeded", None),
        ({"input": [5, 1_000_000]}, "invalid_value", "input"),
        ({"input": ["a", ""]}, "invalid_value", "input"),
        ({"input": "a", "encoding_format": "hex"}, "invalid_value", "encoding_format"),
        ({"input": "a", "encoding_format": []}, "invalid_value", "encoding_format"),
        ({"input": "a", "dimensions": 1}, "invalid_value", "dimensions"),
        ({"input": "a", "dimensions": "2"}, "invalid_value", "dimensions"),
    ],
)
def test_what_can_not_be_embedded_is_refused_and_costs_nothing(
    api: Api, body: dict[str, Any], code: str, param: str | None
) -> None:
    before = left_today(api)
    answer = ask(api, body.pop("input"), **body)
    assert answer.status_code == 400
    error = answer.get_json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert (api.server.asked, api.events(), left_today(api)) == ([], [], before)


def test_a_model_server_that_fails_costs_nothing(api: Api) -> None:
    before = left_today(api)
    api.server.failure = RuntimeError("on purpose")
    assert ask(api, "a").status_code == 500
    assert (api.events(), left_today(api)) == ([], before)


def test_a_version_that_left_is_followed_by_the_one_that_answers_now(tmp_path: Path) -> None:
    with running_embedder(tmp_path) as api:
        api.server.states = {2: "AVAILABLE"}
        assert ask(api, ["a", "b"]).status_code == 200
        assert [version for version, _ in api.server.asked] == [1, 2, 2]
        [event] = api.events()
        assert event.model_version == "2"


def test_a_quota_that_has_no_room_is_told(tmp_path: Path) -> None:
    with running_embedder(tmp_path, quota_user_day_tokens=5) as api:
        assert ask(api, "a").status_code == 200  # 3 tokens
        answer = ask(api, "a")
        assert (answer.status_code, answer.get_json()["error"]["code"]) == (429, "quota_user_day")
        assert len(api.events()) == 1


def test_the_same_idempotency_key_is_billed_once(api: Api) -> None:
    first, again = (ask(api, ["a", "b"], {"Idempotency-Key": "k"}) for _ in range(2))
    assert first.status_code == 200
    assert first.data == again.data
    assert len(api.events()) == 1


def test_a_model_is_for_what_its_card_says(tmp_path: Path) -> None:
    write_assets(tmp_path / "models" / "reviews" / "1" / "assets.extra", "reviews", 1)
    with running_embedder(tmp_path, embedding_models=(EMBEDDER, "reviews")) as api:
        body = {"model": EMBEDDER, "messages": [{"role": "user", "content": "a"}]}
        chat = api.client.post("/v1/chat/completions", json=body, headers=USER)
        assert (chat.status_code, chat.get_json()["error"]["code"]) == (400, "unsupported_by_model")
        classifier = ask(api, "a", model="reviews")
        assert (classifier.status_code, classifier.get_json()["error"]["code"]) == (503, "model_unavailable")
        assert "made for classification" in classifier.get_json()["error"]["message"]
        entries = api.client.get("/v1/models", headers=USER).get_json()["data"]
        assert [(entry["id"], entry.get("max_model_len")) for entry in entries] == [
            (MODEL, MAX_LENGTH_TOKENS),
            (EMBEDDER, MAX_LENGTH_TOKENS),
            ("reviews", None),
        ]


def test_a_name_has_one_use(tmp_path: Path) -> None:
    for names, why in (((MODEL,), "behind /analyze"), (("a", "a"), "twice"), (("a b",), "letters")):
        with pytest.raises(ValidationError, match=why):
            ServingSettings(embedding_models=names)
    file = write_engines(tmp_path, {"addresses": ["http://127.0.0.1:9/v1"]})
    check_engines(file, (EMBEDDER,))
    with pytest.raises(EnginesFileError, match="of the model server"):
        check_engines(file, (ENGINE,))
