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
        """A request would be answered and recorded; or what is missing for that."""
        problems = {"journal": services.journal.problem(), services.catalog.model: services.catalog.problem()}
        missing = [f"{part}: {problem}" for part, problem in problems.items() if problem is not None]
        if missing:
            raise NotReadyError(f"Not ready: {'; '.join(missing)}")
        version = services.catalog.current()
        return _json(
            {
                "status": "ready",
                "model": version.model,
                "model_version": version.version_name,
                "refused_versions": {str(number): why for number, why in services.catalog.refused().items()},
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


def _json(document: dict[str, object]) -> Response:
    return Response(orjson.dumps(document), content_type="application/json")
