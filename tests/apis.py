"""The API for tests: in this process before a stand-in for the model server, or as processes of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
from flask import Flask
from flask.testing import FlaskClient
from numpy.typing import NDArray
from werkzeug.wsgi import ClosingIterator

from serving.app import SERVICES, build_app
from serving.errors import ModelVersionNotFoundError
from serving.inference import Metadata
from serving.observability import trace
from serving.openapi import codes
from serving.services import Services, make_services
from serving.settings import ServingSettings
from tallybook.processes import free_port
from tallybook.segments import read_segment
from tallybook.usage import UsageEvent
from tests.modelservers import wait_until
from tests.savedmodels import tiny_embedding, tiny_probabilities, write_assets

MODEL = "review-sentiment"
USER = {"X-User-ID": "user-a"}
POLL_SECONDS = 0.02


class StandIn:
    """Not a model server: answers as the tiny model would, and fails when it is told to."""

    def __init__(self, *versions: int) -> None:
        self.states = dict.fromkeys(versions or (1,), "AVAILABLE")
        self.failure: Exception | None = None
        self.asked: list[tuple[int, list[int]]] = []
        self.batches: list[int] = []  # rows of each
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.was_asked = threading.Semaphore(0)

    def predict(
        self,
        model: str,
        version: int,
        input_ids: Sequence[int],
        timeout_seconds: float,
        metadata: Metadata = (),
    ) -> NDArray[np.float32]:
        """What the tiny model of this version says."""
        self.asked.append((version, list(input_ids)))
        self.was_asked.release()
        assert self.may_answer.wait(30)
        if self.failure is not None:
            raise self.failure
        if self.states.get(version) != "AVAILABLE":
            raise ModelVersionNotFoundError(f"model {model} version {version} is not served")
        return tiny_probabilities(input_ids, version)

    def embed(
        self,
        model: str,
        version: int,
        inputs: Sequence[Sequence[int]],
        timeout_seconds: float,
        metadata: Metadata = (),
    ) -> NDArray[np.float32]:
        """What the tiny embedder says."""
        for input_ids in inputs:
            self.predict(model, version, input_ids, timeout_seconds)
        self.batches.append(len(inputs))
        return np.stack([tiny_embedding(input_ids) for input_ids in inputs])

    def classify(
        self,
        model: str,
        version: int,
        inputs: Sequence[Sequence[int]],
        timeout_seconds: float,
        metadata: Metadata = (),
    ) -> NDArray[np.float32]:
        """What the tiny model says of each."""
        self.batches.append(len(inputs))
        return np.stack([self.predict(model, version, one, timeout_seconds) for one in inputs])

    def version_states(self, model: str, timeout_seconds: float) -> dict[int, str]:
        """The states that the test has set."""
        if self.failure is not None:
            raise self.failure
        return dict(self.states)

    def close(self) -> None:
        """Nothing to close."""


class Api:
    """An application in this process, its parts, and what it has recorded."""

    def __init__(self, app: Flask, server: StandIn, journal_dir: Path) -> None:
        self.app = app
        self.server = server
        self.client: FlaskClient = app.test_client()
        self.services: Services = app.extensions[SERVICES]
        self._journal_dir = journal_dir

    def analyze(self, text: str = "hotel", **headers: str) -> Any:
        """POST a text as user-a, unless the headers say else."""
        return self.client.post("/analyze", json={"text": text}, headers={**USER, **headers})

    def events(self) -> list[UsageEvent]:
        """The events that a reader of the journal believes now."""
        return events_in(self._journal_dir)


@contextmanager
def running_app(tmp_path: Path, server: StandIn | None = None, **settings: Any) -> Iterator[Api]:
    """An application before a stand-in; version 1 is exported unless models_dir is given."""
    if "models_dir" not in settings:
        settings["models_dir"] = tmp_path / "models"
        export(settings["models_dir"], 1)
    made = ServingSettings(
        **{
            "journal_dir": tmp_path / "journal",
            "access_url": f"sqlite:///{tmp_path / 'access.db'}",
            "ledger_url": f"sqlite:///{tmp_path / 'ledger.db'}",
            "version_poll_seconds": POLL_SECONDS,
            **settings,
        }
    )
    server = server or StandIn()
    app = build_app(make_services(made, model=server))
    undocumented: set[str] = set()
    app.wsgi_app = _held_against_the_document(app.wsgi_app, undocumented)  # type: ignore[method-assign]
    try:
        yield Api(app, server, made.journal_dir)
        assert undocumented == set(), "serving/openapi.py does not know what was answered"
    finally:
        server.may_answer.set()
        app.extensions[SERVICES].close()


def _held_against_the_document(inner: Any, undocumented: set[str]) -> Any:
    """Notice each failure of a route of ours whose code the OpenAPI document does not name."""

    def asked(environ: Any, start_response: Any) -> Any:
        statuses: list[int] = []

        def start(status: str, headers: Any, exc_info: Any = None) -> Any:
            statuses.append(int(status[:3]))
            return start_response(status, headers, exc_info)

        answer = inner(environ, start)
        route = trace.of(environ).route
        if route is not None and statuses[0] >= 400 and isinstance(answer, (list, ClosingIterator)):
            body = list(answer)
            code = orjson.loads(b"".join(body))["error"]["code"]
            path = route.replace("<", "{").replace(">", "}")
            method = environ["REQUEST_METHOD"]
            if code not in codes(path, method).get(statuses[0], ()) and code != "method_not_allowed":
                undocumented.add(f"{method} {path}: {statuses[0]} {code}")
            return body
        return answer

    return asked


def export(models_dir: Path, version: int) -> Path:
    """What the API reads of an exported version: no SavedModel, so that no test needs TensorFlow for it."""
    folder = models_dir / MODEL / str(version)
    write_assets(folder / "assets.extra", MODEL, version)
    return folder


def alter_card(folder: Path, **changes: Any) -> None:
    """Change the model card of an exported version."""
    card = folder / "assets.extra" / "model_card.json"
    card.write_bytes(orjson.dumps({**orjson.loads(card.read_bytes()), **changes}))


def events_in(journal_dir: Path) -> list[UsageEvent]:
    """The events that a reader believes, in the order of their segments."""
    found = []
    for segment in sorted(journal_dir.glob("*.jsonl")):
        offset = 0
        while (extract := read_segment(segment, offset)).next_offset > offset:
            found += [UsageEvent.from_record(orjson.loads(line.raw)) for line in extract.lines]
            offset = extract.next_offset
    return found


class ApiProcess:
    """`tallybook serve` as a process group of its own, as operators run it."""

    def __init__(
        self,
        folder: Path,
        models_dir: Path,
        model_server_address: str,
        port: int | None = None,
        **settings: str,
    ) -> None:
        """Start it, on a free port unless one is given; `settings` are variables without their prefix."""
        self.port = free_port() if port is None else port
        self.address = f"http://127.0.0.1:{self.port}"
        self._client = httpx.Client(base_url=self.address, timeout=30)
        self.journal_dir = folder / "journal"
        self.log = folder / f"api-{self.port}.log"
        given = {
            "models_dir": str(models_dir),
            "journal_dir": str(self.journal_dir),
            "model_server_address": model_server_address,
            "access_url": f"sqlite:///{folder / 'access.db'}",
            "ledger_url": f"sqlite:///{folder / 'ledger.db'}",
            "version_poll_seconds": "0.05",
            "quota_user_day_tokens": "1000000000",  # of users who send as fast as they can
            "quota_project_month_tokens": "1000000000",
            "quota_requests_per_minute": "1000000000",
            "config": str(folder / "no.toml"),
            **settings,
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tallybook.cli", "serve", "--port", str(self.port)],
                env={**os.environ, **{f"TALLYBOOK_{name.upper()}": value for name, value in given.items()}},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )

    def wait_until_ready(self) -> str:
        """Wait until it has printed its ready line, given back, and `/readyz` agrees."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        wait_until(lambda: httpx.get(f"{self.address}/readyz").status_code == 200)
        return line

    def wait_until_listening(self) -> None:
        """Wait for the ready line only: /v1 needs no model server."""
        assert self.process.stdout is not None
        assert self.process.stdout.readline(), self.log.read_text()

    def workers(self) -> list[int]:
        """Process ids of its workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def analyze(self, text: str = "hotel", **headers: str) -> httpx.Response:
        """POST a text as user-a, unless the headers say else."""
        return self._client.post("/analyze", json={"text": text}, headers={**USER, **headers})

    def kill(self) -> None:
        """SIGKILL to all of its processes, and wait until they are gone."""
        self._client.close()
        workers = self.workers() if self.process.poll() is None else []
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        wait_until(lambda: not any(Path(f"/proc/{pid}/cwd").exists() for pid in workers))


@contextmanager
def running_api(folder: Path, models_dir: Path, server_address: str, **settings: str) -> Iterator[ApiProcess]:
    """An API process that is ready; killed at the end, if the test has not ended it."""
    api = ApiProcess(folder, models_dir, server_address, None, **settings)
    try:
        api.wait_until_ready()
        yield api
    finally:
        api.kill()
