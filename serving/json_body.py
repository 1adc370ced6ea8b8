"""A request's body as a JSON object; of a name given twice the last counts."""

from __future__ import annotations

from typing import Any

import orjson

from serving.errors import InvalidEncodingError, InvalidJsonError


def document_of(body: bytes) -> dict[str, Any]:
    """Raises: InvalidEncodingError; InvalidJsonError."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if "surrogate" in error.msg or "UTF-8" in error.msg:
            raise InvalidEncodingError("The body must be UTF-8, without halves of surrogate pairs.") from None
        raise InvalidJsonError(f"The body is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise InvalidJsonError("The body must be a JSON object.")
    return document
