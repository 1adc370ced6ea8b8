"""Errors under /v1, in the form that OpenAI's clients read."""

from __future__ import annotations

from http import HTTPStatus

import orjson

from serving.errors import describe

_TYPES = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
}


def render(error: BaseException) -> bytes:
    """The body of any error. Clients tell errors apart by their status and `code`."""
    status, code, message = describe(error)
    default = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
    return orjson.dumps(
        {
            "error": {
                "message": message,
                "type": _TYPES.get(HTTPStatus(status), default),
                "param": getattr(error, "param", None),
                "code": code,
            }
        }
    )
