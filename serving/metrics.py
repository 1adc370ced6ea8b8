"""What Prometheus reads at /metrics. A user is never a label: there may be any number of them."""

from __future__ import annotations

import os
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from serving.settings import METRICS_FOLDER_VARIABLE

OTHER_PROJECTS = "(other)"  # no project can have this name
_MOST_PROJECTS = 1000
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_COMMIT_EVENTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """The metrics of one process; with several workers, /metrics of any of them adds all up."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call] # half of the text, of no use
        self._folder = os.environ.get(METRICS_FOLDER_VARIABLE)
        self._registry = CollectorRegistry()
        if self._folder is None:
            ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "tallybook_requests_total", "Requests answered.", ["route", "status"], registry=self._registry
        )
        self._request_seconds = Histogram(
            "tallybook_request_seconds", "Time from request to answer.", ["route"],
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        self._tokens = Counter(
            "tallybook_tokens_total", "Tokens served and recorded; projects beyond the first "
            f"{_MOST_PROJECTS} of a worker count as {OTHER_PROJECTS}.",
            ["model", "model_version", "project", "direction"], registry=self._registry,
        )  # fmt: skip
        self.model_seconds = Histogram(
            "tallybook_model_seconds", "Time of a call to the model server.",
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        self.model_in_flight = Gauge(
            "tallybook_model_in_flight", "Calls to the model server under way.",
            multiprocess_mode="livesum", registry=self._registry,
        )  # fmt: skip
        self.journal_wait_seconds = Histogram(
            "tallybook_journal_wait_seconds", "Time until a usage event was durable.",
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        self._commit_events = Histogram(
            "tallybook_journal_commit_events", "Usage events made durable by one sync.",
            buckets=_COMMIT_EVENTS, registry=self._registry,
        )  # fmt: skip
        self._journal_bytes = Counter(
            "tallybook_journal_bytes_total", "Bytes of usage events made durable.", registry=self._registry
        )
        self._route_metrics: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        self._token_metrics: dict[tuple[str, str, str], tuple[Counter, Counter]] = {}
        self._projects: set[str] = set()

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count an answered request. `route` is a route of ours, never a path."""
        key = (route, status)
        found = self._route_metrics.get(key)
        if found is None:
            found = self._requests.labels(route, str(status)), self._request_seconds.labels(route)
            self._route_metrics[key] = found
        found[0].inc()
        found[1].observe(seconds)

    def tokens(self, model: str, version: str, project: str, prompt: int, completion: int) -> None:
        """Count the tokens of a recorded request."""
        key = (model, version, project)
        found = self._token_metrics.get(key)
        if found is None:
            key = (model, version, self._label(project))
            found = self._tokens.labels(*key, "prompt"), self._tokens.labels(*key, "completion")
            self._token_metrics[key] = found
        found[0].inc(prompt)
        found[1].inc(completion)

    def commit(self, events: int, size_bytes: int) -> None:
        """Count a durable batch of the journal."""
        self._commit_events.observe(events)
        self._journal_bytes.inc(size_bytes)

    def exposition(self) -> bytes:
        """The text that Prometheus scrapes."""
        if self._folder is None:
            return generate_latest(self._registry)
        _forget_the_dead(Path(self._folder))
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=self._folder)  # type: ignore[no-untyped-call] # untyped there
        return generate_latest(registry)

    def _label(self, project: str) -> str:
        if project not in self._projects:
            if len(self._projects) >= _MOST_PROJECTS:
                return OTHER_PROJECTS
            self._projects.add(project)
        return project


def _forget_the_dead(folder: Path) -> None:
    """Drop the gauges of workers that were killed: what they had under way is not under way any more."""
    for file in folder.glob("gauge_live*_*.db"):
        pid = int(file.stem.rpartition("_")[2])
        if not Path(f"/proc/{pid}").exists():
            mark_process_dead(pid, path=str(folder))  # type: ignore[no-untyped-call] # untyped there
