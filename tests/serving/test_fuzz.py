"""Every field of every route, fuzzed from the OpenAPI document; `TALLYBOOK_FUZZ_EXAMPLES=1000` for more."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from serving.openapi import document
from tests.apis import MODEL as CLASSIFIER
from tests.engines import MODEL, chunk, completion, streamed, usage, usage_chunk, whole
from tests.serving.test_v1 import Gateway, running_gateway

CHOSEN = os.environ.get("TALLYBOOK_FUZZ_EXAMPLES")  # without it, the same requests every time
EXAMPLES = int(CHOSEN or 15)
CONFORMANCE = {
    GenerationMode.POSITIVE: [status_code_conformance, content_type_conformance, response_schema_conformance],
    GenerationMode.NEGATIVE: [content_type_conformance],
}
METERED = {"/analyze", "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/classify"}
ASKED_FOR = {"/v1/classify": CLASSIFIER}  # by their paths; the engine's model by the others


def answered(asked: Any) -> Any:
    """What an engine might say."""
    if "/embeddings" in asked.line:
        return whole({"object": "list", "data": [], "model": MODEL, "usage": usage(3, 0)})
    if asked.body.get("stream"):
        return streamed(chunk("all "), chunk("good"), usage_chunk(usage(6, 2)))
    return whole(completion("all good", usage(6, 2)))


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    kinds = ["chat", "completions", "embeddings"]
    with running_gateway(tmp_path_factory.mktemp("fuzz"), kinds=kinds) as running:
        running.engine.script = answered
        yield running


# Nothing can be wrong in a request that has neither parameters nor a body.
FUZZED = [
    (path, method, mode)
    for path, methods in document()["paths"].items()
    for method, operation in methods.items()
    for mode in GenerationMode
    if "parameters" in operation or mode is GenerationMode.POSITIVE
]
seen: dict[str, int] = {}  # statuses of the routes that are metered, by the id of the request


@pytest.mark.parametrize(("path", "method", "mode"), FUZZED)
def test_nothing_that_is_sent_makes_the_api_fail(
    fuzzed: Gateway, path: str, method: str, mode: GenerationMode
) -> None:
    schema = schemathesis.openapi.from_wsgi("/openapi.json", fuzzed.api.app)
    requests = schema[path][method.upper()].as_strategy(generation_mode=mode)

    @settings(max_examples=EXAMPLES, derandomize=not CHOSEN, suppress_health_check=list(HealthCheck))
    @given(requests, st.sampled_from([MODEL] * 3 + [None]), st.sampled_from(["user-a"] * 3 + [None]))
    def ask(case: Any, model: str | None, user: str | None) -> None:
        # Most should get beyond the question who asks for which model.
        if model and isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = ASKED_FOR.get(path, model)
        headers = {"X-User-ID": user} if user else {}
        response = case.call(headers=headers, environ_base={"REMOTE_ADDR": "127.0.0.1"})
        if path in METERED and "idempotent-replayed" not in response.headers:
            [request_id] = response.headers["x-request-id"]
            seen[request_id] = response.status_code
        case.validate_response(response, checks=[not_a_server_error, *CONFORMANCE[mode]])

    ask()


def test_every_answer_has_its_event_and_every_event_its_answer(fuzzed: Gateway) -> None:
    events = {event.id for event in fuzzed.api.events()}
    assert len(events) == len(fuzzed.api.events())
    assert events == {request for request, status in seen.items() if status == 200}
    assert {200, 400, 401} <= set(seen.values())
