"""The API as an OpenAPI 3.1 document: every route, what it takes and answers, and every code it fails with.

`tests/serving/test_openapi.py` holds it against the routes and the errors, and every test of the API holds
what was answered against it.
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from itertools import groupby
from typing import Any

from tallybook.usage import NAME

Errors = tuple[tuple[int, str], ...]
Schema = dict[str, Any]

_EVERYWHERE: Errors = ((500, "internal_error"),)
_CALLER: Errors = (
    (400, "invalid_user"), (400, "invalid_project"), (400, "invalid_forwarded_for"), (401, "missing_user"),
    (401, "invalid_api_key"), (401, "api_key_expired"), (403, "untrusted_caller"),
    (403, "caller_contradicted"), (403, "network_refused"), (503, "access_unavailable"),
)  # fmt: skip
_BODY: Errors = (
    (400, "incomplete_body"), (400, "invalid_encoding"), (400, "invalid_json"), (408, "body_timeout"),
    (413, "body_too_large"),
)  # fmt: skip
_MODEL: Errors = (
    (402, "wallet_empty"), (403, "model_not_allowed"), (502, "model_rejected"), (503, "overloaded"),
    (503, "journal_unavailable"), (503, "model_unavailable"), (504, "model_timeout"),
)  # fmt: skip
_QUOTA: Errors = (
    (429, "quota_exceeded"), (429, "quota_user_day"), (429, "quota_project_month"), (429, "quota_requests"),
    (429, "quota_concurrent"), (503, "quota_unavailable"),
)  # fmt: skip
_AGAIN: Errors = (
    (400, "invalid_idempotency_key"),
    (409, "idempotency_in_progress"),
    (422, "idempotency_key_reused"),
)
_ACT: Errors = ((503, "journal_unavailable"),)
_ASKED: Errors = (*_BODY, (400, "unknown_field"), (400, "invalid_request"))
_DECIDED: Errors = (
    (403, "not_approver"), (403, "own_grant"), (404, "unknown_grant"), (409, "grant_decided"),
)  # fmt: skip
_TEXT: Errors = (
    (400, "missing_text"), (400, "invalid_text"), (400, "empty_text"), (400, "unknown_field"),
    (422, "text_too_long"),
)  # fmt: skip
_ENGINE: Errors = (
    (400, "bad_request"), (400, "invalid_value"), (400, "unsupported_by_model"),
    (400, "context_length_exceeded"), (400, "refused_by_model"), (404, "model_not_found"),
    (503, "model_overloaded"),
)  # fmt: skip

_OF_A_MODEL = _CALLER + _BODY + _MODEL + _QUOTA + _AGAIN
_NO_MODEL: Errors = ((402, "wallet_empty"), (403, "model_not_allowed"), (404, "model_not_found"))
_NAMES = f"^{NAME.pattern}$"
_COUNT: Schema = {"type": "integer", "minimum": 0}
_ANY: Schema = {"type": "object"}
_BOOLEAN: Schema = {"type": ["boolean", "null"]}
_MODEL_NAME: Schema = {"type": "string", "minLength": 1}
_CHOICES: Schema = {"type": ["integer", "null"], "minimum": 1, "maximum": 128}
_MOST_TOKENS: Schema = {"type": ["integer", "null"], "minimum": 1, "maximum": 1_000_000_000}


def _object(required: Iterable[str] = (), **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required)}


def _texts(least: int) -> Schema:
    ids = {"type": "array", "items": _COUNT, "minItems": 1}
    text = {"type": "string", "minLength": least}
    many = [{"type": "array", "items": one, "minItems": 1, "maxItems": 2048} for one in (text, ids)]
    return {"anyOf": [text, ids, *many]}


_USAGE = _object(
    ("prompt_tokens", "completion_tokens", "total_tokens"),
    prompt_tokens=_COUNT, completion_tokens=_COUNT, total_tokens=_COUNT,
)  # fmt: skip
_ANALYSIS = _object(
    ("request_id", "model", "model_version", "label", "probabilities", "output", "usage"),
    request_id={"type": "string", "format": "uuid"}, model=_MODEL_NAME, model_version=_MODEL_NAME,
    label={"type": "string"}, output={"type": "string"}, usage=_USAGE,
    probabilities={"type": "object", "additionalProperties": {"type": "number"}},
)  # fmt: skip
_GENERATION: dict[str, Schema] = {
    "model": _MODEL_NAME, "stream": _BOOLEAN, "n": _CHOICES, "max_tokens": _MOST_TOKENS,
    "stream_options": {"type": ["object", "null"], "properties": {"include_usage": {"type": "boolean"}}},
}  # fmt: skip
_MESSAGE = _object(
    ("role", "content"),
    role={"enum": ["system", "user", "assistant"]}, content={"type": "string"},
)  # fmt: skip
_ANALYZE = {
    **_object(("text",), text={"type": "string", "minLength": 1}),
    "additionalProperties": False,
}
_CHAT = _object(
    ("model", "messages"),
    messages={"type": "array", "items": _MESSAGE, "minItems": 1}, max_completion_tokens=_MOST_TOKENS,
    **_GENERATION,
)  # fmt: skip
_COMPLETION = _object(("model", "prompt"), prompt=_texts(0), best_of=_CHOICES, **_GENERATION)
_EMBEDDING = _object(
    ("model", "input"), model=_MODEL_NAME, input=_texts(1),
    encoding_format={"enum": ["float", "base64", None]},
    dimensions={"type": ["integer", "null"], "minimum": 1},
)  # fmt: skip
_VECTOR = _object(
    index=_COUNT, object={"const": "embedding"},
    embedding={"anyOf": [{"type": "array", "items": {"type": "number"}}, {"type": "string"}]},
)  # fmt: skip
_EMBEDDINGS = _object(
    ("data", "model", "usage"), model=_MODEL_NAME, data={"type": "array", "items": _VECTOR},
    usage=_object(("prompt_tokens", "total_tokens"), prompt_tokens=_COUNT, total_tokens=_COUNT),
)  # fmt: skip
_CLASSIFICATION = _object(("model", "input"), model=_MODEL_NAME, input=_texts(1), use_activation=_BOOLEAN)
_CLASS = _object(
    ("index", "label", "probs", "num_classes"),
    index=_COUNT, label={"type": "string"}, num_classes=_COUNT,
    probs={"type": "array", "items": {"type": "number"}},
)  # fmt: skip
_CLASSES = _object(
    ("id", "object", "created", "model", "data", "usage"), object={"const": "list"}, created=_COUNT,
    id={"type": "string"}, model=_MODEL_NAME, data={"type": "array", "items": _CLASS}, usage=_USAGE,
)  # fmt: skip
_MODEL_ENTRY = _object(
    ("id", "object", "created", "owned_by"),
    id=_MODEL_NAME, object={"const": "model"}, created=_COUNT, owned_by={"type": "string"},
    max_model_len=_COUNT,
)  # fmt: skip
_MODELS = _object(("object", "data"), object={"const": "list"}, data={"type": "array", "items": _MODEL_ENTRY})
_STANDING = _object(("user", "project", "quotas"), user=_MODEL_NAME, project=_MODEL_NAME, quotas=_ANY)
_GRANT = _object(("id", "quota", "subject", "tokens", "until", "state"), tokens=_COUNT)
_GRANTS = _object(("requests",), requests={"type": "array", "items": _GRANT})
_TOKENS: Schema = {"type": "integer", "minimum": 1, "maximum": 1_000_000_000}
_UNTIL: Schema = {"type": "string", "format": "date-time"}
_OVERAGE = {
    **_object(
        ("quota", "tokens", "until", "reason"),
        quota={"enum": ["user_day_tokens", "project_month_tokens"]},
        tokens=_TOKENS, until=_UNTIL, reason={"type": "string", "minLength": 1, "maxLength": 512},
    ),
    "additionalProperties": False,
}  # fmt: skip
_APPROVAL = {**_object(tokens=_TOKENS, until=_UNTIL), "additionalProperties": False}
_ALIVE = _object(("status",), status={"const": "alive"})
_EVENT = _object(("data",), data={"type": "string"})  # a chunk as JSON, or [DONE]
_READY = _object(
    ("status", "models", "problems", "refused_versions"),
    status={"const": "ready"}, models=_ANY, problems=_ANY, refused_versions=_ANY,
)  # fmt: skip


def document() -> dict[str, Any]:
    """The whole document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tallybook",
            "version": "1",
            "description": "Models that a company serves itself, every token metered.",
        },
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "paths": {
            "/analyze": {"post": _asks("The label of a text.", _ANALYSIS, _OF_A_MODEL + _TEXT, _ANALYZE)},
            "/v1/chat/completions": {
                "post": _asks("OpenAI's chat.", _ANY, _OF_A_MODEL + _ENGINE, _CHAT, streams=True)
            },
            "/v1/completions": {
                "post": _asks("OpenAI's completions.", _ANY, _OF_A_MODEL + _ENGINE, _COMPLETION, streams=True)
            },
            "/v1/embeddings": {
                "post": _asks("OpenAI's embeddings.", _EMBEDDINGS, _OF_A_MODEL + _ENGINE, _EMBEDDING)
            },
            "/v1/classify": {
                "post": _asks(
                    "vLLM's classification, by the model behind /analyze.",
                    _CLASSES,
                    _OF_A_MODEL + _ENGINE,
                    _CLASSIFICATION,
                )
            },
            "/v1/models": {"get": _asks("The models behind /v1.", _MODELS, _CALLER)},
            "/v1/models/{name}": {
                "get": _asks("One of them.", _MODEL_ENTRY, (*_CALLER, *_NO_MODEL), path=("name",))
            },
            "/v1/quota": {"get": _asks("What is left of the caller's quotas.", _STANDING, _CALLER + _QUOTA)},
            "/v1/quota/requests": {
                "get": _asks("What was asked for; of an approver, by anybody.", _GRANTS, _CALLER),
                "post": _asks("Ask for more.", _GRANT, _CALLER + _ASKED + _QUOTA + _ACT, _OVERAGE),
            },
            **{
                f"/v1/quota/requests/{{grant_id}}/{deed}": {
                    "post": _asks(f"An approver's word: {deed}.", _GRANT, errors, body, path=("grant_id",))
                }
                for deed, errors, body in (
                    ("approve", _CALLER + _ASKED + _DECIDED + _ACT, _APPROVAL),
                    ("deny", _CALLER + _DECIDED + _ACT, None),
                    ("end", _CALLER + _DECIDED + _ACT, None),
                )
            },
            "/healthz": {"get": _tells("The process is alive.", _ALIVE)},
            "/readyz": {"get": _tells("A request would be answered.", _READY, ((503, "not_ready"),))},
            "/metrics": {"get": _tells("What Prometheus reads.", None)},
            "/openapi.json": {"get": _tells("This document.", _ANY)},
        },
    }


def codes(path: str, method: str) -> dict[int, list[str]]:
    """The codes that a route may fail with, by status."""
    responses = document()["paths"][path][method.lower()]["responses"]
    return {
        int(status): response["x-codes"] for status, response in responses.items() if "x-codes" in response
    }


def _asks(
    summary: str,
    answer: Schema,
    errors: Errors,
    body: Schema | None = None,
    *,
    streams: bool = False,
    path: tuple[str, ...] = (),
) -> Schema:
    """A route for users."""
    form = _openai_error if answer is not _ANALYSIS else _error
    operation = _operation(summary, answer, errors, form)
    header = {"in": "header", "required": False, "schema": {"type": "string", "pattern": _NAMES}}
    operation["parameters"] = [
        {"name": "X-User-ID", "description": "Who asks; needs no key from a trusted network.", **header},
        {"name": "X-Project-ID", "description": "For which project.", **header},
        *([_IDEMPOTENCY] if _AGAIN[0] in errors else []),
        *({"name": n, "in": "path", "required": True, "schema": {"type": "string"}} for n in path),
    ]
    operation["security"] = [{"key": []}, {}]
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    if streams:
        operation["responses"]["200"]["content"]["text/event-stream"] = {"schema": _EVENT}
    return operation


def _tells(summary: str, answer: Schema | None, errors: Errors = ()) -> Schema:
    """A route for operators."""
    return _operation(summary, answer, errors, _error)


def _operation(summary: str, answer: Schema | None, errors: Errors, form: Any) -> Schema:
    content = {"text/plain": {}} if answer is None else {"application/json": {"schema": answer}}
    responses: Schema = {"200": {"description": "The answer.", "content": content, "headers": _HEADERS}}
    for status, found in groupby(sorted({*errors, *_EVERYWHERE}), key=lambda error: error[0]):
        known = [code for _, code in found]
        responses[str(status)] = {
            "description": f"{HTTPStatus(status).phrase}: {', '.join(known)}.",
            "content": {"application/json": {"schema": form(known)}},
            "headers": _HEADERS,
            "x-codes": known,
        }
    return {"summary": summary, "responses": responses}


_IDEMPOTENCY: Schema = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "The same key and body within a day: the same answer, billed once. Not with a stream.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
}
_HEADERS: Schema = {
    "X-Request-ID": {"schema": {"type": "string"}, "description": "Also the id of the event."}
}


def _error(known: list[str]) -> Schema:
    text: Schema = {"type": "string"}
    error = _object(("code", "message", "request_id"), code={"enum": known}, message=text, request_id=text)
    return _object(("error",), error=error)


def _openai_error(known: list[str]) -> Schema:
    text: Schema = {"type": "string"}
    param: Schema = {"type": ["string", "null"]}
    error = _object(
        ("message", "type", "param", "code"), code={"enum": known}, message=text, type=text, param=param
    )
    return _object(("error",), error=error)
