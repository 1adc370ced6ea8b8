"""Answers in the JSON of TensorFlow Serving's REST API."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.model_server.errors import InvalidRequestError
from serving.model_server.json_tensors import BASE64, Json
from serving.model_server.signature import Arrays
from serving.protos import Message

_BYTES_SUFFIX = "_bytes"  # of the names of outputs that are bytes, and not text


def predictions(outputs: Arrays, by_row: bool) -> bytes:
    """The body of a Predict answer. Raises: InvalidRequestError: by row, and the outputs have no rows."""
    named = {name: _plain(name, array) for name, array in sorted(outputs.items())}
    if not by_row:
        return _dump({"outputs": named if len(named) > 1 else next(iter(named.values()))})
    rows = -1
    for name, array in sorted(outputs.items()):
        if not array.ndim:
            raise InvalidRequestError(f"Tensor name: {name} has no shape information ")
        if rows not in (-1, array.shape[0]):
            raise InvalidRequestError(
                f"Tensor name: {name} has inconsistent batch size: {array.shape[0]} expecting: {rows}"
            )
        rows = array.shape[0]
    if len(named) == 1:
        return _dump({"predictions": next(iter(named.values()))})
    return _dump({"predictions": [{n: values[row] for n, values in named.items()} for row in range(rows)]})


def classifications(result: Message) -> bytes:
    """The body of a Classify answer."""
    return _dump(
        {
            "results": [
                [[c.label, _shortest(c.score)] for c in classes.classes] for classes in result.classifications
            ]
        }
    )


def regressions(result: Message) -> bytes:
    """The body of a Regress answer."""
    return _dump({"results": [_shortest(regression.value) for regression in result.regressions]})


def error(message: str) -> bytes:
    """The body of an answer that is none."""
    return _dump({"error": message})


def _plain(name: str, array: NDArray[Any]) -> Json:
    """An array for JSON: the shortest numbers, and bytes as text, or as base64 by the output's name."""
    if array.dtype.kind == "O":
        as_bytes = name.endswith(_BYTES_SUFFIX)
        return _texts(array.tolist(), as_bytes)
    if array.dtype.kind == "f":
        array = array.astype(np.float32) if array.dtype == np.float16 else array
        if array.dtype == np.float32:
            return _map(array.tolist(), _shortest)
    return array.tolist()


def _texts(value: Json, as_bytes: bool) -> Json:
    if isinstance(value, list):
        return [_texts(inner, as_bytes) for inner in value]
    if as_bytes:
        return {BASE64: base64.b64encode(value).decode()}
    return value.decode("utf-8", "replace")


def _map(value: Json, change: Any) -> Json:
    return [_map(inner, change) for inner in value] if isinstance(value, list) else change(value)


def _shortest(value: float) -> float:
    """The float32 with the fewest digits that are read as the same float32."""
    return float(str(np.float32(value)))


def _dump(document: Json) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass")
