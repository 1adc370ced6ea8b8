"""POST /analyze: a text in; its label, the probabilities, and the tokens that both sides counted out."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import orjson
from flask import Blueprint, Response, request

from serving.access.identity import Caller
from serving.catalog import Choice
from serving.errors import (
    BodyTimeoutError,
    BodyTooLargeError,
    EmptyTextError,
    IncompleteBodyError,
    InvalidTextError,
    JournalError,
    MissingTextError,
    ModelTimeoutError,
    ModelVersionNotFoundError,
    UnknownFieldError,
)
from serving.json_body import document_of
from serving.metering import Served
from serving.observability import trace
from serving.observability.trace import Trace
from serving.quotas.contract import Reservation
from serving.services import Services
from serving.tokenization import Answer, ModelVersion

PATH = "/analyze"
OPERATION = "analyze"


def blueprint(services: Services) -> Blueprint:
    """The route, for Flask to know; `serving.app` asks `answer` without it."""
    routes = Blueprint("analyze", __name__)

    @routes.post(PATH)
    def analyze() -> Response:
        return Response(answer(services, request.environ), content_type="application/json")

    return routes


def answer(services: Services, environ: Mapping[str, Any]) -> bytes:
    """The answer to the request with this WSGI environment, once its usage is recorded. Raises: ApiError."""
    current = trace.of(environ)
    deadline = current.started + services.settings.deadline_seconds
    with services.threads:
        current.caller = caller = services.gatekeeper.identify(environ)
        services.gatekeeper.check_model(caller, services.catalog.model)
        sent = receive(services, current, environ)
        text = text_of(sent)
        if services.journal.problem() is not None:
            raise JournalError("Usage can't be recorded now, so nothing is served.")
        current.attempt = services.idempotency.begin(environ, caller, sent, current.request_id)
        (version, label), ids, said, reservation = _ask(services, current, caller, text, deadline)
        body = _body(current.request_id, version, len(ids), said)
        try:
            services.meter.record(
                Served(
                    request_id=current.request_id,
                    caller=caller,
                    operation=OPERATION,
                    version=version,
                    model_label=label,
                    text=text,
                    prompt_tokens=len(ids),
                    completion_tokens=said.completion_tokens,
                    started=current.started,
                    trace_id=current.client_trace_id,
                    deadline=deadline,
                    attempt=current.attempt,
                    answer=body,
                )
            )
        except BaseException:
            reservation.release()
            raise
        reservation.settle(len(ids) + said.completion_tokens)
    current.operation, current.model = OPERATION, version.model
    current.model_version = version.version_name
    current.prompt_tokens = len(ids)
    current.completion_tokens = said.completion_tokens
    return body


def _body(request_id: str, version: ModelVersion, prompt_tokens: int, said: Answer) -> bytes:
    return orjson.dumps(
        {
            "request_id": request_id,
            "model": version.model,
            "model_version": version.version_name,
            "label": said.label,
            "probabilities": said.probabilities,
            "output": said.output,
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": said.completion_tokens,
                "total_tokens": prompt_tokens + said.completion_tokens,
            },
        }
    )


def _ask(
    services: Services, current: Trace, caller: Caller, text: str, deadline: float
) -> tuple[Choice, list[int], Answer, Reservation]:
    """Count the text with the tokenizer of the version that answers this user, and have it answer.

    What is reserved is the text's tokens and those of that version's longest answer: never too little. A
    version that left in the meantime is followed by the one that answers now; the text is counted anew.
    """
    choice = services.catalog.choose(caller.user)
    while True:
        version = choice.version
        ids = version.prompt_ids(text)
        reservation = services.reserve(current, caller, version.model, len(ids) + version.most_output_tokens)
        try:
            with services.queue.place(caller, version.model, deadline):
                return choice, ids, _predict(services, current, version, ids, deadline), reservation
        except ModelVersionNotFoundError:
            reservation.release()
            choice = services.catalog.instead_of(version, caller.user)
        except BaseException:
            reservation.release()
            raise


def _predict(
    services: Services, current: Trace, version: ModelVersion, ids: list[int], deadline: float
) -> Answer:
    started = time.monotonic()
    if started >= deadline:
        raise ModelTimeoutError("The request's time was up before the model could be asked.")
    services.metrics.model_in_flight.inc()
    try:
        metadata = () if current.parent is None else tuple(current.passed_on().items())
        probabilities = services.model.predict(
            version.model, version.version, ids, deadline - started, metadata
        )
    finally:
        services.metrics.model_in_flight.dec()
    services.metrics.model_seconds.observe(time.monotonic() - started)
    return version.answer(probabilities.tolist())


def receive(services: Services, current: Trace, environ: Mapping[str, Any]) -> bytes:
    """The request's body; one that is cut off because it comes too slowly is no body.

    Raises: BodyTimeoutError: see `serving.slow_bodies`. BodyTooLargeError; IncompleteBodyError.
    """
    settings = services.settings
    current.body_at = math.inf
    is_whole = False
    try:
        body = read_body(environ, settings.max_body_bytes)
        is_whole = "CONTENT_LENGTH" in environ  # of one in chunks nobody knows
    finally:
        current.body_at = time.monotonic()
        if not is_whole and current.body_at - current.started >= settings.deadline_seconds:
            raise BodyTimeoutError("The body did not come in time.")
    return body


def read_body(environ: Mapping[str, Any], limit_bytes: int) -> bytes:
    """The request's body, sent with a length or in chunks.

    Raises: BodyTooLargeError; IncompleteBodyError.
    """
    announced = environ.get("CONTENT_LENGTH") or None
    if announced is None and not environ.get("wsgi.input_terminated"):
        return b""
    length = limit_bytes + 1 if announced is None else int(announced)
    if announced is not None and length > limit_bytes:
        raise BodyTooLargeError(f"The body has {length} bytes; at most {limit_bytes} are taken.")
    body: bytes = environ["wsgi.input"].read(length)
    if len(body) > limit_bytes:
        raise BodyTooLargeError(f"The body has more than {limit_bytes} bytes.")
    if announced is not None and len(body) < length:
        raise IncompleteBodyError(f"The body ended after {len(body)} of {length} bytes.")
    return body


def text_of(body: bytes) -> str:
    """The text in a body `{"text": "..."}`; of a name given twice the last counts.

    Raises: InvalidEncodingError, InvalidJsonError, MissingTextError, UnknownFieldError, InvalidTextError,
        EmptyTextError.
    """
    document = document_of(body)
    if "text" not in document:
        raise MissingTextError('The body has no "text".')
    if len(document) > 1:
        raise UnknownFieldError('The body may have no field but "text".')
    text = document["text"]
    if not isinstance(text, str):
        raise InvalidTextError('"text" must be a string.')
    if not text or text.isspace():
        raise EmptyTextError('"text" is empty.')
    return text
