"""/v1: what OpenAI's clients ask, answered by the engines of `models.toml`, and by the model server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import Any

import orjson
from flask import Blueprint, Response, request

from serving import classification, embedding
from serving.access.errors import IdempotencyKeyError
from serving.access.identity import Caller
from serving.engines.call import EngineCall
from serving.engines.file import Kind
from serving.engines.models import EngineModel
from serving.engines.streaming import Relay, says_error, texts_of
from serving.engines.tokens import Prompt
from serving.engines.usage import EngineUsage, as_openai_says
from serving.errors import (
    JournalError,
    ModelRejectedError,
    ModelUnavailableError,
    UnknownModelError,
    UnsupportedByModelError,
)
from serving.json_body import document_of
from serving.observability import trace
from serving.observability.trace import Trace
from serving.routes.analyze import receive
from serving.routes.v1_requests import (
    Asked,
    chat_prompt,
    check_embedding_lengths,
    for_engine,
    generation_of,
    inputs_of,
    model_of,
    most_tokens,
    room_for_answer,
)
from serving.services import Services

_JSON = "application/json"
_NO_ANSWER = "The engine of this model answered something that is no answer."
STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx: pass on at once
}


def blueprint(services: Services) -> Blueprint:
    """The routes; `serving.app` asks those of POSTS without Flask."""
    routes = Blueprint("v1", __name__, url_prefix="/v1")

    @routes.get("/models")
    def models() -> Response:
        caller = services.gatekeeper.identify(request.environ)
        names = (*services.engines, *services.catalogs)
        usable = (name for name in names if services.gatekeeper.may_use(caller, name))
        entries = [_entry(services, name) for name in usable]
        return Response(orjson.dumps({"object": "list", "data": entries}), content_type=_JSON)

    @routes.get("/models/<name>")
    def model(name: str) -> Response:
        caller = services.gatekeeper.identify(request.environ)
        _check_known(services, caller, name)
        return Response(orjson.dumps(_entry(services, name)), content_type=_JSON)

    for path, answer in POSTS.items():
        view = partial(_view, answer, services)
        routes.add_url_rule(path.removeprefix("/v1"), path, view, methods=["POST"])
    return routes


def _view(answer: Callable[[Services, Mapping[str, Any]], bytes | Relay], services: Services) -> Response:
    body = answer(services, request.environ)
    if isinstance(body, bytes):
        return Response(body, content_type=_JSON)
    return Response(body, headers=STREAM_HEADERS, direct_passthrough=True)


def chat(services: Services, environ: Mapping[str, Any]) -> bytes | Relay:
    """POST /v1/chat/completions. Raises: ApiError."""
    current, document = _begin(services, environ)
    target = _target(services, current, document, "chat")
    asked = generation_of(document)
    prompt = chat_prompt(target.tokenizer, document)
    return _generate(services, current, target, "chat", "/chat/completions", asked, prompt)


def completions(services: Services, environ: Mapping[str, Any]) -> bytes | Relay:
    """POST /v1/completions. Raises: ApiError."""
    current, document = _begin(services, environ)
    target = _target(services, current, document, "completions")
    inputs = inputs_of(document, "prompt")
    asked = generation_of(document, len(inputs))
    prompt = target.tokenizer.texts(inputs)
    return _generate(services, current, target, "text_completion", "/completions", asked, prompt)


def embeddings(services: Services, environ: Mapping[str, Any]) -> bytes:
    """POST /v1/embeddings. Raises: ApiError."""
    current, document = _begin(services, environ)
    name = model_of(document)
    if name in services.embedders:
        services.gatekeeper.check_model(current.known_caller, name)
        return embedding.answer(services, current, services.embedders[name], document)
    target = _target(services, current, document, "embeddings")
    inputs = inputs_of(document, "input")
    prompt = target.tokenizer.texts(inputs)
    check_embedding_lengths(target.engine, prompt)
    body = for_engine(target.engine, Asked(target.model, document), None)
    call = EngineCall(services, current, target, "embeddings", prompt, prompt.tokens, len(inputs))
    return _whole(call, "/embeddings", body)


def classify(services: Services, environ: Mapping[str, Any]) -> bytes:
    """POST /v1/classify. Raises: ApiError."""
    with services.threads:
        current, document = _begin(services, environ, nullcontext())  # it has a thread already
        name = model_of(document)
        _check_known(services, current.known_caller, name)
        if name != services.catalog.model:
            raise _unsupported(services, name, "classify")
        return classification.answer(services, current, services.catalog, document)


POSTS: Mapping[str, Callable[[Services, Mapping[str, Any]], bytes | Relay]] = {
    "/v1/chat/completions": chat,
    "/v1/completions": completions,
    "/v1/embeddings": embeddings,
    "/v1/classify": classify,
}


def _begin(
    services: Services, environ: Mapping[str, Any], threads: AbstractContextManager[None] | None = None
) -> tuple[Trace, dict[str, Any]]:
    current = trace.of(environ)
    current.caller = caller = services.gatekeeper.identify(environ)
    with (
        threads or services.queue.engine_threads
    ):  # a client may send its body slowly, or a twin may be answering
        sent = receive(services, current, environ)
        document = document_of(sent)
        if services.journal.problem() is not None:
            raise JournalError("Usage can't be recorded now, so nothing is served.")
        if document.get("stream") is True and "HTTP_IDEMPOTENCY_KEY" in environ:
            raise IdempotencyKeyError("A stream can't be given again: send no Idempotency-Key with it.")
        current.attempt = services.idempotency.begin(environ, caller, sent, current.request_id)
    return current, document


def _check_known(services: Services, caller: Caller, name: str) -> None:
    services.gatekeeper.check_model(caller, name)
    if name not in services.engines and name not in services.catalogs:
        raise UnknownModelError(f"There is no model {name[:128]!r}; GET /v1/models lists them.")


def _target(services: Services, current: Trace, document: Mapping[str, Any], kind: Kind) -> EngineModel:
    name = model_of(document)
    _check_known(services, current.known_caller, name)
    target = services.engines.get(name)
    if target is None or kind not in target.engine.kinds:
        raise _unsupported(services, name, kind)
    return target


def _unsupported(services: Services, name: str, kind: str) -> UnsupportedByModelError:
    """What a client is told who asks a model for something that it is not for."""
    target = services.engines.get(name)
    if target is not None:
        uses = ", ".join(target.engine.kinds)
    else:
        uses = "classify" if name == services.catalog.model else "embeddings"
    return UnsupportedByModelError(f"The model {name} is for {uses}, not for {kind}.")


def _generate(
    services: Services,
    current: Trace,
    target: EngineModel,
    operation: str,
    path: str,
    asked: Asked,
    prompt: Prompt,
) -> bytes | Relay:
    most = most_tokens(target.engine, asked, prompt)
    body = for_engine(target.engine, asked, room_for_answer(target.engine, prompt))
    call = EngineCall(services, current, target, operation, prompt, most, asked.choices)
    if not asked.stream:
        return _whole(call, path, body)
    answer = call.ask(path, body)
    try:
        relay = current.stream = Relay(call, answer, wants_usage=asked.wants_usage)
    except BaseException as error:
        call.done(answer)
        call.failed(error)
        raise
    return relay


def _whole(call: EngineCall, path: str, body: bytes) -> bytes:
    """The engine's whole answer, recorded."""
    answer = call.ask(path, body)
    try:
        document = _document(answer.read_all(call.deadline))
        texts = [text for choice in _choices(document) for text in texts_of(choice, "message")]
        usage = call.said(document.get("usage"))
        estimated = usage is None or (not usage.completion and bool(texts))
        if usage is None or estimated:
            usage, document["usage"] = call.counted(texts), {}
        # What is told is what is billed, also where the engine contradicts itself.
        document["usage"] |= _said(usage, embeddings="choices" not in document)
        document["model"] = call.target.model
        answered = _dumped(document)
    except BaseException as error:
        call.failed(error)
        raise
    finally:
        call.done(answer)
    call.record(200, usage, estimated=estimated, answer=answered)
    return answered


def _document(body: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        document = None
    if not isinstance(document, dict) or not ("choices" in document or "data" in document):
        raise ModelRejectedError(_NO_ANSWER)
    if says_error(document):
        raise ModelRejectedError("The engine of this model failed, and said so in its answer.")
    return document


def _dumped(document: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(document)
    except orjson.JSONEncodeError:  # it is nested deeper than anything that means something
        raise ModelRejectedError(_NO_ANSWER) from None


def _choices(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    choices = document.get("choices")
    return [one for one in choices if isinstance(one, dict)] if isinstance(choices, list) else []


def _said(usage: EngineUsage, *, embeddings: bool) -> dict[str, Any]:
    if embeddings:
        return {"prompt_tokens": usage.prompt, "total_tokens": usage.prompt + usage.completion}
    return as_openai_says(usage)


def _entry(services: Services, name: str) -> dict[str, Any]:
    target = services.engines.get(name)
    if target is not None:
        since, longest = target.since, {"max_model_len": target.engine.max_context_tokens}
    else:
        since, longest = services.catalogs[name].since, {}
        with suppress(ModelUnavailableError):  # until a version is there, nobody knows
            longest["max_model_len"] = services.catalogs[name].current().max_length_tokens
    return {"id": name, "object": "model", "created": since, "owned_by": "tallybook", **longest}
