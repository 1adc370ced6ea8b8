"""POST /v1/classify: the model behind /analyze, asked and answered as vLLM and SGLang have it."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import orjson

from serving import batches
from serving.batches import Operation
from serving.catalog import Catalog
from serving.errors import UnsupportedByModelError
from serving.inference import Rows
from serving.observability.trace import Trace
from serving.routes.v1_requests import inputs_of
from serving.services import Services
from serving.tokenization import ModelVersion


def answer(services: Services, current: Trace, catalog: Catalog, document: dict[str, Any]) -> bytes:
    """The label of each input, once their usage is recorded. Raises: ApiError: it costs nothing."""
    if any(document.get(name) is False for name in ("activation", "softmax", "use_activation")):
        raise UnsupportedByModelError(
            f"The model {catalog.model} gives probabilities only, not what is before them."
        )
    operation = Operation(
        "classify", services.model.classify, ModelVersion.label_count, partial(_body, current.request_id)
    )
    return batches.answer(services, current, catalog, operation, inputs_of(document, "input"))


def _body(request_id: str, version: ModelVersion, probabilities: Rows, tokens: int) -> bytes:
    data = [
        {
            "index": index,
            "label": version.label(row),
            "probs": row,
            "num_classes": len(row),
        }
        for index, row in enumerate(probabilities.tolist())
    ]
    usage = {
        "prompt_tokens": tokens,
        "total_tokens": tokens,
        "completion_tokens": 0,
        "prompt_tokens_details": None,
    }
    return orjson.dumps(
        {
            "id": f"classify-{request_id}",
            "object": "list",
            "created": int(time.time()),
            "model": version.model,
            "data": data,
            "usage": usage,
        }
    )
