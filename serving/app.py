"""The Flask application: `create_app(settings)` makes the parts, joins the routes and frames each request."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from flask import Flask, Response, request
from werkzeug.exceptions import MethodNotAllowed

from serving import errors, openai_errors
from serving.access.idempotency import Replayed
from serving.engines.streaming import Relay
from serving.observability import trace
from serving.observability.trace import Trace
from serving.quotas.contract import Quotas
from serving.routes import analyze, operations, quota, v1
from serving.services import Services, make_services
from serving.settings import ServingSettings

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

Direct = Callable[["WSGIEnvironment"], bytes | Relay]  # what answers a POST without Flask
SERVICES = "tallybook"  # the key of a Flask application's services in its `extensions`
_UNKNOWN_ROUTE = "unknown"
_REPLAYED = ("Idempotent-Replayed", "true")  # the answer was given before, and is billed once
_OK, _BAD_REQUEST = HTTPStatus.OK, HTTPStatus.BAD_REQUEST  # to look one up costs more than to compare it
_STATUS_LINES = {status: f"{status.value} {status.phrase}" for status in HTTPStatus}

log = logging.getLogger(__name__)


def create_app(settings: ServingSettings) -> Flask:
    """The API with its real parts. Starts threads: call it in the process that serves."""
    _say_who_is_believed(settings)
    return build_app(make_services(settings))


def build_app(services: Services) -> Flask:
    """The API around these parts; `app.extensions[SERVICES].close()` ends them."""
    app = Flask(__name__, static_folder=None)
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.url_map.merge_slashes = False  # a redirect would be a page of HTML
    app.extensions[SERVICES] = services
    app.register_error_handler(Exception, _failed)
    app.register_blueprint(analyze.blueprint(services))
    app.register_blueprint(v1.blueprint(services))
    app.register_blueprint(quota.blueprint(services))
    app.register_blueprint(operations.blueprint(services))
    direct: dict[str, Direct] = {analyze.PATH: partial(analyze.answer, services)}
    direct |= {path: partial(answer, services) for path, answer in v1.POSTS.items()}
    app.wsgi_app = _framed(app.wsgi_app, services, direct)  # type: ignore[method-assign, assignment] # as Flask advises
    return app


def _framed(inner: WSGIApplication, services: Services, direct: Mapping[str, Direct]) -> WSGIApplication:
    """Give each request an id that its client is told, count it and log it.

    Around Flask, not in its hooks: it costs less and holds when Flask itself fails. A POST to a path in
    `direct` is answered here with the JSON, or the stream, that its function gives: what Flask does for a
    request costs as much as all that `/analyze` does, and nothing there needs it.
    """

    under_way = services.under_way

    def framed(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        current = trace.begin(environ)
        under_way.add(current)

        def ended() -> None:
            current.end()
            under_way.discard(current)
            services.metrics.request(current.route or _UNKNOWN_ROUTE, current.status, current.seconds)
            services.log.write(current.line)
            if services.spans is not None:
                services.spans.record(current)

        try:
            answer = direct.get(current.path) if current.method == "POST" else None
            if answer is None:
                return inner(environ, _starting(environ, start_response, current, services.quotas))
            current.route = current.path
            return _answered(answer, environ, start_response, current, services.quotas)
        finally:
            if current.stream is None:
                ended()
            else:
                current.stream.when_ended(ended)

    return framed


def _starting(
    environ: WSGIEnvironment, start_response: StartResponse, current: Trace, quotas: Quotas
) -> Callable[..., Callable[[bytes], object]]:
    """What begins an answer of Flask's."""

    def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
        headers.append(("X-Request-ID", current.request_id))
        current.status = int(status[:3])
        rule = environ["werkzeug.request"].url_rule  # gone when Flask is done
        current.route = None if rule is None else rule.rule
        headers += _of_quotas(quotas, current)
        return start_response(status, headers, exc_info)

    return start


def _answered(
    answer: Direct,
    environ: WSGIEnvironment,
    start_response: StartResponse,
    current: Trace,
    quotas: Quotas,
) -> Iterable[bytes]:
    headers = [("X-Request-ID", current.request_id)]
    try:
        body = answer(environ)
        status = _OK
        if isinstance(body, Relay):
            current.status = status
            headers += [*v1.STREAM_HEADERS.items(), *_of_quotas(quotas, current)]
            start_response(_STATUS_LINES[status], headers)
            return body
    except Exception as failure:  # noqa: BLE001 -- it is told, and logged if it is a fault of ours
        error = _counted(failure, quotas, current)
        if isinstance(error, Replayed):
            body, status = error.body, _OK
            headers.append(_REPLAYED)
        else:
            body, status, more = _told(error, current)
            headers += more.items()
    current.status = status
    headers += [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    headers += _of_quotas(quotas, current)
    start_response(_STATUS_LINES[status], headers)
    return [body]


def _counted(error: Exception, quotas: Quotas, current: Trace) -> Exception:
    """What a request is told that ended before anything was reserved: it counts, and may be one too many."""
    if current.caller is not None and not current.is_counted:
        try:
            quotas.count(current.caller)
        except errors.QuotaExceededError as exceeded:
            return exceeded
        except errors.QuotaUnavailableError:
            pass
    return error


def _of_quotas(quotas: Quotas, current: Trace) -> Iterable[tuple[str, str]]:
    """What is left, for an answer; an error that is one of quotas has it already."""
    if current.caller is None or current.status >= _BAD_REQUEST:
        return ()
    return quotas.headers(current.caller).items()


def _failed(error: Exception) -> Response:
    if isinstance(error, Replayed):
        return Response(error.body, headers=[_REPLAYED], content_type="application/json")
    body, status, headers = _told(error, trace.of(request.environ))
    return Response(body, status, headers, content_type="application/json")


def _told(error: Exception, current: Trace) -> tuple[bytes, HTTPStatus, dict[str, str]]:
    """What the client is told of an error: body, status and further headers."""
    status, code, message = errors.describe(error)
    if code == "internal_error":
        log.error("request %s failed", current.request_id, exc_info=error)
    current.code = code
    if current.attempt is not None:
        current.attempt.give_up()
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        current.reason = message
    headers: dict[str, str] = {}
    if isinstance(error, MethodNotAllowed) and error.valid_methods:
        headers["Allow"] = ", ".join(sorted(error.valid_methods))
    if isinstance(error, errors.ApiError):
        headers.update(error.headers)
    if current.path.startswith("/v1/"):
        return openai_errors.render(error), HTTPStatus(status), headers
    return errors.render(code, message, current.request_id), HTTPStatus(status), headers


def _say_who_is_believed(settings: ServingSettings) -> None:
    networks = ", ".join(str(network) for network in settings.trusted_networks) or "none"
    log.warning("X-USER-ID IS TRUSTED WITHOUT A KEY from these networks: %s", networks)
    if settings.gateway_secret is not None:
        log.info("X-User-ID is trusted from anywhere with the gateway's secret")
    proxies = ", ".join(str(network) for network in settings.trusted_proxies) or "none"
    log.info("X-Forwarded-For is believed from: %s", proxies)
