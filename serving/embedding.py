"""POST /v1/embeddings of a model on the model server: counted with its own tokenizer, billed as one event."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from serving.catalog import Catalog, Choice
from serving.errors import (
    ContextTooLongError,
    InvalidValueError,
    ModelRejectedError,
    ModelTimeoutError,
    ModelVersionNotFoundError,
)
from serving.metering import Served
from serving.observability.trace import Trace
from serving.quotas.contract import Reservation
from serving.routes.v1_requests import inputs_of
from serving.services import Services
from serving.tokenization import ModelVersion

OPERATION = "embeddings"
_ROWS = 32  # of one call to the model server, whatever length they have

Inputs = Sequence[str | Sequence[int]]
Vectors = NDArray[np.float32]  # [inputs, dimension]


def answer(services: Services, current: Trace, catalog: Catalog, document: dict[str, Any]) -> bytes:
    """The embeddings in OpenAI's form, once their usage is recorded. Raises: ApiError: it costs nothing."""
    inputs = inputs_of(document, "input")
    form = _form_of(document)
    deadline = current.started + services.settings.deadline_seconds
    (version, label), tokens, vectors, reservation = _ask(
        services, current, catalog, inputs, document.get("dimensions"), deadline
    )
    body = _body(version.model, vectors, form, tokens)
    try:
        services.meter.record(
            Served(
                request_id=current.request_id,
                caller=current.known_caller,
                operation=OPERATION,
                version=version,
                model_label=label,
                text=_shown(inputs),
                prompt_tokens=tokens,
                completion_tokens=0,
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
    reservation.settle(tokens)
    current.operation, current.model = OPERATION, version.model
    current.model_version = version.version_name
    current.prompt_tokens, current.completion_tokens = tokens, 0
    return body


def _ask(
    services: Services, current: Trace, catalog: Catalog, inputs: Inputs, dimensions: object, deadline: float
) -> tuple[Choice, int, Vectors, Reservation]:
    """Count with the tokenizer of the version that answers this user, and have it answer.

    A version that left in the meantime is followed by the one that answers now; all is counted anew.
    """
    caller = current.known_caller
    choice = catalog.choose(caller.user)
    while True:
        version = choice.version
        _check_dimensions(version, dimensions)
        ids = [_ids(version, one) for one in inputs]
        tokens = sum(map(len, ids))
        reservation = services.quotas.reserve(caller, version.model, tokens)
        try:
            with services.queue.place(caller, version.model, deadline):
                return choice, tokens, _embed(services, current, version, ids, deadline), reservation
        except ModelVersionNotFoundError:
            reservation.release()
            choice = catalog.instead_of(version, caller.user)
        except BaseException:
            reservation.release()
            raise


def _ids(version: ModelVersion, given: str | Sequence[int]) -> Sequence[int]:
    """What the model reads of an input; token ids are taken as they are."""
    ids = version.ids(given) if isinstance(given, str) else given
    if len(ids) > version.max_length_tokens:
        raise ContextTooLongError(
            f"An input has {len(ids)} tokens; {version.model} takes {version.max_length_tokens}."
        )
    if not ids:
        raise InvalidValueError("input", "An input has nothing that the model can read.")
    if max(ids) >= version.vocabulary_size:
        raise InvalidValueError("input", f"{version.model} has tokens up to {version.vocabulary_size - 1}.")
    return ids


def _embed(
    services: Services, current: Trace, version: ModelVersion, ids: Sequence[Sequence[int]], deadline: float
) -> Vectors:
    """One row for each input, in their order; those of about one length are asked together."""
    metadata = () if current.parent is None else tuple(current.passed_on().items())
    order = sorted(range(len(ids)), key=lambda number: len(ids[number]))
    vectors = np.empty((len(ids), version.dimension or 0), np.float32)
    for first in range(0, len(order), _ROWS):
        places = order[first : first + _ROWS]
        started = time.monotonic()
        if started >= deadline:
            raise ModelTimeoutError("The request's time was up before the model had embedded all of it.")
        services.metrics.model_in_flight.inc()
        try:
            found = services.model.embed(
                version.model, version.version, [ids[one] for one in places], deadline - started, metadata
            )
        finally:
            services.metrics.model_in_flight.dec()
        services.metrics.model_seconds.observe(time.monotonic() - started)
        if found.shape[1] != version.dimension:
            raise ModelRejectedError("The model's embeddings have not the dimension that its card names.")
        vectors[places] = found
    return vectors


def _form_of(document: Mapping[str, Any]) -> Literal["float", "base64"]:
    form = document.get("encoding_format")
    if form not in (None, "float", "base64"):
        raise InvalidValueError("encoding_format", "encoding_format must be float or base64.")
    return "base64" if form == "base64" else "float"


def _check_dimensions(version: ModelVersion, dimensions: object) -> None:
    if dimensions is not None and (type(dimensions) is not int or dimensions != version.dimension):
        raise InvalidValueError(
            "dimensions", f"{version.model} has embeddings of {version.dimension} dimensions, and no others."
        )


def _shown(inputs: Inputs) -> str:
    """What an event may keep of them."""
    return "\n".join(one if isinstance(one, str) else str(list(one)) for one in inputs)


def _body(model: str, vectors: Vectors, form: Literal["float", "base64"], tokens: int) -> bytes:
    def shown(vector: Vectors) -> str | Vectors:
        return vector if form == "float" else base64.b64encode(vector.astype("<f4").tobytes()).decode()

    data = [
        {"object": "embedding", "index": index, "embedding": shown(vector)}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return orjson.dumps(
        {"object": "list", "data": data, "model": model, "usage": usage}, option=orjson.OPT_SERIALIZE_NUMPY
    )
