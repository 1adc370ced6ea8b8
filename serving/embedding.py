"""POST /v1/embeddings of a model on the model server."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import orjson

from serving import batches
from serving.batches import Operation
from serving.catalog import Catalog
from serving.errors import InvalidValueError
from serving.inference import Rows
from serving.observability.trace import Trace
from serving.routes.v1_requests import inputs_of
from serving.services import Services
from serving.tokenization import ModelVersion

Form = Literal["float", "base64"]


def answer(services: Services, current: Trace, catalog: Catalog, document: dict[str, Any]) -> bytes:
    """The embeddings in OpenAI's form, once their usage is recorded. Raises: ApiError: it costs nothing."""
    operation = Operation(
        "embeddings",
        services.model.embed,
        partial(_dimension, document.get("dimensions")),
        partial(_body, _form_of(document)),
    )
    return batches.answer(services, current, catalog, operation, inputs_of(document, "input"))


def _form_of(document: Mapping[str, Any]) -> Form:
    form = document.get("encoding_format")
    if form not in (None, "float", "base64"):
        raise InvalidValueError("encoding_format", '"encoding_format" must be float or base64.')
    return "base64" if form == "base64" else "float"


def _dimension(asked: object, version: ModelVersion) -> int:
    if asked is not None and (type(asked) is not int or asked != version.dimension):
        raise InvalidValueError(
            "dimensions",
            f"The model {version.model} has embeddings of {version.dimension} dimensions, and no others.",
        )
    return version.dimension or 0  # a model that embeds has one: its card was checked


def _body(form: Form, version: ModelVersion, vectors: Rows, tokens: int) -> bytes:
    def shown(vector: Rows) -> str | Rows:
        return vector if form == "float" else base64.b64encode(vector.astype("<f4").tobytes()).decode()

    data = [
        {"object": "embedding", "index": index, "embedding": shown(vector)}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return orjson.dumps(
        {"object": "list", "data": data, "model": version.model, "usage": usage},
        option=orjson.OPT_SERIALIZE_NUMPY,
    )
