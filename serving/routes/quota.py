"""/v1/quota: what is left of a caller's quotas, and overage: asked for, approved, denied, ended."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import orjson
from flask import Blueprint, Response, request
from sqlalchemy.engine import Engine

from serving.access import grants
from serving.access.errors import InvalidRequestError, NotApproverError
from serving.access.grants import Grant
from serving.access.identity import Caller
from serving.errors import InvalidJsonError, JournalError, UnknownFieldError
from serving.observability import trace
from serving.quotas.limits import USER_DAY
from serving.routes.analyze import receive
from serving.services import Services
from tallybook.usage import InvalidEventError, instant


def blueprint(services: Services) -> Blueprint:
    """The routes."""
    routes = Blueprint("quota", __name__, url_prefix="/v1/quota")

    @routes.get("")
    def standing() -> Response:
        """Limit, use and rest of each quota that holds for the caller."""
        caller = _caller(services)
        told = {
            name: {**found._asdict(), "remaining": found.remaining}
            for name, found in services.quotas.standing(caller).items()
        }
        return _json({"user": caller.user, "project": caller.project, "quotas": told})

    @routes.post("/requests")
    def ask() -> Response:
        """Ask for more: {"quota", "tokens", "until", "reason"}."""
        caller = _caller(services)
        services.quotas.reserve(caller, "", 0).release()  # asking is a request, too
        asked = _document(services, {"quota", "tokens", "until", "reason"})
        quota = _text(asked, "quota")

        def do(store: Engine) -> Grant:
            return grants.ask(
                store,
                services.settings.journal_dir,
                quota=quota,
                subject=caller.user if quota == USER_DAY else caller.project,
                tokens=_tokens(asked),
                until=_until(asked),
                reason=_text(asked, "reason"),
                by=caller.user,
            )

        return _changed(services, do)

    @routes.get("/requests")
    def requests() -> Response:
        """What the caller asked for; of an approver, what anybody did."""
        caller = _caller(services)
        found = grants.list_grants(services.access.store(), None if caller.approver else caller.user)
        return _json({"requests": [grant.document() for grant in found]})

    @routes.post("/requests/<grant_id>/approve")
    def approve(grant_id: str) -> Response:
        """Grant it; {"tokens", "until"} may say else than was asked for."""
        caller = _approver(services)
        said = _document(services, {"tokens", "until"})
        tokens = _tokens(said) if "tokens" in said else None
        until = _until(said) if "until" in said else None
        folder = services.settings.journal_dir
        return _changed(
            services, lambda store: grants.approve(store, folder, grant_id, caller.user, tokens, until)
        )

    @routes.post("/requests/<grant_id>/deny")
    def deny(grant_id: str) -> Response:
        """Refuse it."""
        caller = _approver(services)
        folder = services.settings.journal_dir
        return _changed(services, lambda store: grants.deny(store, folder, grant_id, caller.user))

    @routes.post("/requests/<grant_id>/end")
    def end(grant_id: str) -> Response:
        """Take a grant back before its time."""
        caller = _approver(services)
        folder = services.settings.journal_dir
        return _changed(services, lambda store: grants.end(store, folder, grant_id, caller.user))

    return routes


def _caller(services: Services) -> Caller:
    caller = services.gatekeeper.identify(request.environ)
    trace.of(request.environ).caller = caller
    return caller


def _approver(services: Services) -> Caller:
    caller = _caller(services)
    if not caller.approver:
        raise NotApproverError("Only an API key of an approver decides about overage.")
    return caller


def _changed(services: Services, do: Callable[[Engine], Grant]) -> Response:
    try:
        grant = do(services.access.store())
    except OSError:
        raise JournalError("The act can't be recorded now, so nothing was changed.") from None
    services.access.refresh()
    return _json(grant.document())


def _document(services: Services, known: set[str]) -> dict[str, Any]:
    with services.threads:  # a client may send it slowly
        body = receive(services, trace.of(request.environ), request.environ)
    try:
        document = orjson.loads(body or b"{}")
    except orjson.JSONDecodeError as error:
        raise InvalidJsonError(f"The body is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise InvalidJsonError("The body must be a JSON object.")
    if unknown := sorted(document.keys() - known):
        raise UnknownFieldError(f"The body may have no field {unknown[0][:64]!r}.")
    return document


def _text(document: dict[str, Any], name: str) -> str:
    value = document.get(name)
    if not isinstance(value, str):
        raise InvalidRequestError(f'"{name}" must be a string.')
    return value


def _tokens(document: dict[str, Any]) -> int:
    value = document.get("tokens")
    if type(value) is not int:
        raise InvalidRequestError('"tokens" must be a whole number.')
    return value


def _until(document: dict[str, Any]) -> datetime:
    try:
        return instant(document.get("until"))
    except InvalidEventError:
        raise InvalidRequestError('"until" must be a moment such as 2026-11-22T18:00:00+08:00.') from None


def _json(document: dict[str, Any]) -> Response:
    return Response(orjson.dumps(document), content_type="application/json")
