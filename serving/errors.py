"""Every way a request can fail, each with its HTTP status and a stable code, rendered in one place.

    ApiError                          what a caller is told
    ├── BadRequestError               400 bad_request
    │   ├── InvalidJsonError          400 invalid_json
    │   ├── InvalidEncodingError      400 invalid_encoding
    │   ├── IncompleteBodyError       400 incomplete_body
    │   ├── MissingTextError          400 missing_text
    │   ├── InvalidTextError          400 invalid_text
    │   ├── EmptyTextError            400 empty_text
    │   ├── UnknownFieldError         400 unknown_field
    │   ├── InvalidUserError          400 invalid_user
    │   ├── InvalidProjectError       400 invalid_project
    │   ├── InvalidForwardedForError  400 invalid_forwarded_for
    │   ├── InvalidValueError         400 invalid_value
    │   ├── UnsupportedByModelError   400 unsupported_by_model
    │   ├── ContextTooLongError       400 context_length_exceeded
    │   ├── RefusedByModelError       400 refused_by_model
    │   ├── InvalidRequestError       400 invalid_request *
    │   └── IdempotencyKeyError       400 invalid_idempotency_key *
    ├── MissingUserError              401 missing_user
    ├── InvalidKeyError               401 invalid_api_key *
    ├── ExpiredKeyError               401 api_key_expired *
    ├── WalletEmptyError              402 wallet_empty *
    ├── UntrustedCallerError          403 untrusted_caller
    ├── UnknownModelError             404 model_not_found
    ├── ContradictionError            403 caller_contradicted *
    ├── RefusedNetworkError           403 network_refused *
    ├── ModelNotAllowedError          403 model_not_allowed *
    ├── NotApproverError              403 not_approver *
    ├── OwnGrantError                 403 own_grant *
    ├── UnknownKeyError               404 unknown_api_key *
    ├── UnknownGrantError             404 unknown_grant *
    ├── GrantDecidedError             409 grant_decided *
    ├── StillRunningError             409 idempotency_in_progress *
    ├── IdempotencyKeyReusedError     422 idempotency_key_reused *
    ├── BodyTimeoutError              408 body_timeout
    ├── BodyTooLargeError             413 body_too_large
    ├── TextTooLongError              422 text_too_long
    ├── QuotaExceededError            429 quota_exceeded
    │   ├── UserDayExceededError      429 quota_user_day *
    │   ├── ProjectMonthExceededError 429 quota_project_month *
    │   ├── RequestsExceededError     429 quota_requests *
    │   └── ConcurrentExceededError   429 quota_concurrent *
    ├── ModelRejectedError            502 model_rejected
    ├── OverloadedError               503 overloaded
    ├── NotReadyError                 503 not_ready
    ├── AccessUnavailableError        503 access_unavailable
    ├── QuotaUnavailableError         503 quota_unavailable
    ├── JournalError                  503 journal_unavailable
    ├── ModelUnavailableError         503 model_unavailable
    │   ├── ModelVersionNotFoundError 503 model_unavailable
    │   └── ModelOverloadedError      503 model_overloaded
    └── ModelTimeoutError             504 model_timeout

Those with a star are in `serving.access.errors`.
Anything else that is raised is a fault of ours: 500 internal_error, logged with its traceback.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus

import orjson
from werkzeug.exceptions import HTTPException


class ApiError(Exception):
    """A failure that the caller is told of; the message is a sentence for people."""

    status = HTTPStatus.INTERNAL_SERVER_ERROR
    code = "internal_error"
    headers: Mapping[str, str] = {}  # of its response

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class BadRequestError(ApiError):
    """The request can't be understood."""

    status = HTTPStatus.BAD_REQUEST
    code = "bad_request"


class InvalidJsonError(BadRequestError):
    """The body is not a JSON object."""

    code = "invalid_json"


class InvalidEncodingError(BadRequestError):
    """The body is not UTF-8, or holds half a surrogate pair."""

    code = "invalid_encoding"


class IncompleteBodyError(BadRequestError):
    """The connection ended before the announced body had arrived."""

    code = "incomplete_body"


class MissingTextError(BadRequestError):
    """The body has no `text`."""

    code = "missing_text"


class InvalidTextError(BadRequestError):
    """`text` is not a string."""

    code = "invalid_text"


class EmptyTextError(BadRequestError):
    """`text` has nothing that the model can read."""

    code = "empty_text"


class UnknownFieldError(BadRequestError):
    """The body has a field that would be ignored."""

    code = "unknown_field"


class InvalidUserError(BadRequestError):
    """X-User-ID is outside its alphabet or length."""

    code = "invalid_user"


class InvalidProjectError(BadRequestError):
    """X-Project-ID is outside its alphabet or length."""

    code = "invalid_project"


class InvalidForwardedForError(BadRequestError):
    """A trusted proxy sent an X-Forwarded-For that names no address."""

    code = "invalid_forwarded_for"


class InvalidValueError(BadRequestError):
    """A field of a request to /v1 is missing, or not what it must be; `param` names it."""

    code = "invalid_value"

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


class UnsupportedByModelError(BadRequestError):
    """The model is not of the kind that this route needs."""

    code = "unsupported_by_model"


class ContextTooLongError(BadRequestError):
    """The prompt and the answer asked for have no room in the model's context; nothing is ever cut."""

    code = "context_length_exceeded"


class RefusedByModelError(BadRequestError):
    """The engine refused the request for what it holds; the message is the engine's."""

    code = "refused_by_model"


class MissingUserError(ApiError):
    """Nobody to bill."""

    status = HTTPStatus.UNAUTHORIZED
    code = "missing_user"


class UntrustedCallerError(ApiError):
    """X-User-ID came from a peer that may not speak for users."""

    status = HTTPStatus.FORBIDDEN
    code = "untrusted_caller"


class UnknownModelError(ApiError):
    """No model of this name is served, or not to this caller."""

    status = HTTPStatus.NOT_FOUND
    code = "model_not_found"


class BodyTimeoutError(ApiError):
    """The body had not come by the request's deadline."""

    status = HTTPStatus.REQUEST_TIMEOUT
    code = "body_timeout"


class BodyTooLargeError(ApiError):
    """The body is over the limit."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    code = "body_too_large"


class TextTooLongError(ApiError):
    """The text has more tokens than the model takes; it is never cut."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    code = "text_too_long"


class QuotaExceededError(ApiError):
    """A quota has not as much left as the request may use; `headers` has Retry-After and what is left."""

    status = HTTPStatus.TOO_MANY_REQUESTS
    code = "quota_exceeded"

    def __init__(self, message: str, headers: Mapping[str, str]) -> None:
        super().__init__(message)
        self.headers = headers


class ModelRejectedError(ApiError):
    """The model server refused what the API sent, or answered what can't be read."""

    status = HTTPStatus.BAD_GATEWAY
    code = "model_rejected"


class OverloadedError(ApiError):
    """Every place for a request is taken."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "overloaded"
    headers: Mapping[str, str] = {"Retry-After": "1"}


class NotReadyError(ApiError):
    """What `GET /readyz` says while a part is missing."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "not_ready"


class AccessUnavailableError(ApiError):
    """The store of keys and grants can't be reached."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "access_unavailable"


class QuotaUnavailableError(ApiError):
    """The counters of the quotas can't be reached, so nothing is promised."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "quota_unavailable"
    headers: Mapping[str, str] = {"Retry-After": "1"}


class JournalError(ApiError):
    """The usage event is not in the journal and never will be: the request costs nothing."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "journal_unavailable"


class ModelUnavailableError(ApiError):
    """The model server can't be reached, or serves no version that the API can count for."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "model_unavailable"


class ModelVersionNotFoundError(ModelUnavailableError):
    """The model server no longer serves the version asked for."""


class ModelOverloadedError(ModelUnavailableError):
    """The engine takes no more requests now."""

    code = "model_overloaded"

    def __init__(self, message: str, retry_after_seconds: int) -> None:
        super().__init__(message)
        self.headers = {"Retry-After": str(retry_after_seconds)}


class ModelTimeoutError(ApiError):
    """The model did not answer within the request's deadline."""

    status = HTTPStatus.GATEWAY_TIMEOUT
    code = "model_timeout"


_INTERNAL = "The request failed through a fault of the server. Nothing was billed."
_NOT_A_WORD = re.compile(r"[^a-z0-9]+")


def describe(error: BaseException) -> tuple[int, str, str]:
    """HTTP status, stable code and message of any exception; one that is not expected leaks nothing."""
    if isinstance(error, ApiError):
        return error.status, error.code, _sentence(error.message)
    if isinstance(error, HTTPException) and error.code is not None and error.code >= HTTPStatus.BAD_REQUEST:
        code = _NOT_A_WORD.sub("_", error.name.lower()).strip("_")
        return error.code, code, f"{error.name}."
    return HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error", _INTERNAL


def _sentence(message: str) -> str:
    if message.split(" ", 1)[0].isalpha():  # else it is an id or a name, spelt so: grant-7d6ee06d1b72
        message = message[:1].upper() + message[1:]
    return message + ("" if message.endswith((".", "!", "?")) else ".")


def render(code: str, message: str, request_id: str) -> bytes:
    """The one shape of an error body."""
    return orjson.dumps({"error": {"code": code, "message": message, "request_id": request_id}})
