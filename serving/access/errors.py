"""Errors of keys, quotas, grants and idempotent requests; `serving.errors` draws all of them."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from serving.errors import ApiError, BadRequestError, QuotaExceededError


class InvalidRequestError(BadRequestError):
    """What is asked for can't be."""

    code = "invalid_request"


class InvalidKeyError(ApiError):
    """The API key is not one of ours, or not any more."""

    status = HTTPStatus.UNAUTHORIZED
    code = "invalid_api_key"
    headers: Mapping[str, str] = {"WWW-Authenticate": "Bearer"}


class ExpiredKeyError(InvalidKeyError):
    """The API key's time is over."""

    code = "api_key_expired"


class ContradictionError(ApiError):
    """X-User-ID or X-Project-ID says else than the API key, which may not act for others."""

    status = HTTPStatus.FORBIDDEN
    code = "caller_contradicted"


class RefusedNetworkError(ApiError):
    """The API key, or the model, may not be used from the client's address."""

    status = HTTPStatus.FORBIDDEN
    code = "network_refused"


class ModelNotAllowedError(ApiError):
    """The API key is not for this model."""

    status = HTTPStatus.FORBIDDEN
    code = "model_not_allowed"


class NotApproverError(ApiError):
    """Only a key of an approver decides about overage."""

    status = HTTPStatus.FORBIDDEN
    code = "not_approver"


class OwnGrantError(ApiError):
    """Nobody decides about what they asked for themselves."""

    status = HTTPStatus.FORBIDDEN
    code = "own_grant"


class UnknownKeyError(ApiError):
    """No API key has this id, or it was revoked."""

    status = HTTPStatus.NOT_FOUND
    code = "unknown_api_key"


class UnknownGrantError(ApiError):
    """Nobody asked for a grant of this id."""

    status = HTTPStatus.NOT_FOUND
    code = "unknown_grant"


class GrantDecidedError(ApiError):
    """The grant is decided already."""

    status = HTTPStatus.CONFLICT
    code = "grant_decided"


class IdempotencyKeyError(BadRequestError):
    """The Idempotency-Key is unfit, or the request is of a kind that can't have one."""

    code = "invalid_idempotency_key"


class IdempotencyKeyReusedError(ApiError):
    """The caller sent another request with this Idempotency-Key within a day."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    code = "idempotency_key_reused"


class StillRunningError(ApiError):
    """The first request with this Idempotency-Key is not answered yet."""

    status = HTTPStatus.CONFLICT
    code = "idempotency_in_progress"
    headers: Mapping[str, str] = {"Retry-After": "1"}


class WalletEmptyError(ApiError):
    """The project has used up its prepaid credit."""

    status = HTTPStatus.PAYMENT_REQUIRED
    code = "wallet_empty"


class UserDayExceededError(QuotaExceededError):
    """The user's tokens of the day."""

    code = "quota_user_day"


class ProjectMonthExceededError(QuotaExceededError):
    """The project's tokens of the month."""

    code = "quota_project_month"


class RequestsExceededError(QuotaExceededError):
    """The requests of the minute."""

    code = "quota_requests"


class ConcurrentExceededError(QuotaExceededError):
    """The requests at once."""

    code = "quota_concurrent"
