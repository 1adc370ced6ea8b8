"""GET /healthz, /readyz, /metrics and /openapi.json: for those who run the API and build on it."""

from __future__ import annotations

import orjson
from flask import Blueprint, Response
from prometheus_client import CONTENT_TYPE_LATEST

from serving.errors import NotReadyError
from serving.openapi import document
from serving.services import Services


def blueprint(services: Services) -> Blueprint:
    """The routes."""
    routes = Blueprint("operations", __name__)

    @routes.get("/healthz")
    def healthz() -> Response:
        """The process is alive and has a thread to spare."""
        return _json({"status": "alive"})

    @routes.get("/readyz")
    def readyz() -> Response:
        """Requests can be recorded, and a model answers; which ones do, and what is wrong with the others."""
        models, problems = _models(services)
        unrecorded = services.journal.problem()
        if unrecorded is not None or not models:
            missing = {} if unrecorded is None else {"journal": unrecorded}
            told = "; ".join(f"{part}: {problem}" for part, problem in {**missing, **problems}.items())
            raise NotReadyError(f"Not ready: {told}")
        refused = {name: catalog.refused() for name, catalog in services.catalogs.items()}
        return _json(
            {
                "status": "ready",
                "models": models,
                "problems": problems,
                "refused_versions": {
                    name: {str(number): why for number, why in found.items()}
                    for name, found in refused.items()
                    if found
                },
            }
        )

    @routes.get("/metrics")
    def metrics() -> Response:
        return Response(services.metrics.exposition(), content_type=CONTENT_TYPE_LATEST)

    described = orjson.dumps(document())

    @routes.get("/openapi.json")
    def openapi() -> Response:
        return Response(described, content_type="application/json")

    return routes


def _models(services: Services) -> tuple[dict[str, str], dict[str, str]]:
    """The version of each model that can answer now; and why the others can't."""
    models, problems = {}, {}
    for name, catalog in services.catalogs.items():
        problem = catalog.problem()
        if problem is None:
            models[name] = catalog.current().version_name
        else:
            problems[name] = problem
    for name, engine in services.engines.items():
        if engine.upstream.is_reachable():
            models[name] = engine.version_name
        else:
            problems[name] = "no address of its engine takes a connection"
    return models, problems


def _json(document: dict[str, object]) -> Response:
    return Response(orjson.dumps(document), content_type="application/json")
