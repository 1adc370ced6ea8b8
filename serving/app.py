"""The Flask application: `create_app(settings)` makes the parts, joins the routes and frames each request."""

from __future__ import annotations

import logging
import time

from flask import Flask, Response, request
from werkzeug.exceptions import MethodNotAllowed

from serving import errors, trace
from serving.routes import analyze, operations
from serving.services import Services, make_services
from serving.settings import ServingSettings

SERVICES = "tallybook"  # the key of a Flask application's services in its `extensions`
_UNKNOWN_ROUTE = "unknown"

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
    app.before_request(trace.begin)
    app.register_error_handler(Exception, _failed)
    app.after_request(_framed_by(services))
    app.register_blueprint(analyze.blueprint(services))
    app.register_blueprint(operations.blueprint(services))
    return app


def _framed_by(services: Services):  # type: ignore[no-untyped-def] # Flask's type of this is not public
    metrics = services.metrics

    def frame(response: Response) -> Response:
        """Name the request to its client, count it and log it."""
        current = trace.current()
        seconds = time.monotonic() - current.started
        response.headers["X-Request-ID"] = current.request_id
        rule = request.url_rule
        metrics.request(_UNKNOWN_ROUTE if rule is None else rule.rule, response.status_code, seconds)
        current.log(response.status_code, seconds)
        return response

    return frame


def _failed(error: Exception) -> Response:
    current = trace.current()
    status, code, message = errors.describe(error)
    if code == "internal_error":
        log.error("request %s failed", current.request_id, exc_info=error)
    current.code = code
    response = Response(errors.render(code, message, current.request_id), status, mimetype="application/json")
    if isinstance(error, MethodNotAllowed) and error.valid_methods:
        response.headers["Allow"] = ", ".join(sorted(error.valid_methods))
    if isinstance(error, errors.OverloadedError):
        response.headers["Retry-After"] = "1"
    return response


def _say_who_is_believed(settings: ServingSettings) -> None:
    networks = ", ".join(str(network) for network in settings.trusted_networks) or "none"
    log.warning("X-USER-ID IS TRUSTED WITHOUT A KEY from these networks: %s", networks)
    if settings.gateway_secret is not None:
        log.info("X-User-ID is trusted from anywhere with the gateway's secret")
    proxies = ", ".join(str(network) for network in settings.trusted_proxies) or "none"
    log.info("X-Forwarded-For is believed from: %s", proxies)
