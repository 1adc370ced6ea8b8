"""What Prometheus reads at /metrics. A user is never a label: there may be any number of them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, Metric, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily

from serving.errors import ApiError
from serving.observability.gpus import Gpus
from serving.observability.tallies import Family, Histogram, Number, Tallies
from serving.settings import METRICS_FOLDER_VARIABLE

OTHER_PROJECTS = "(other)"  # no project can have this name
_REFRESH_SECONDS = 2.0
_MOST_PROJECTS = 1000
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LONG = (*_SECONDS, 30.0, 60.0, 120.0, 300.0)
_COMMIT_EVENTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

_REQUESTS = Family("counter", "tallybook_requests_total", "Requests answered.", ("route", "status"))
_REQUEST_SECONDS = Family(
    "histogram", "tallybook_request_seconds", "Time from request to answer.", ("route",), _SECONDS
)
_TOKENS = Family(
    "counter",
    "tallybook_tokens_total",
    f"Tokens served and recorded; projects beyond the first {_MOST_PROJECTS} of a worker count as "
    f"{OTHER_PROJECTS}.",
    ("model", "model_version", "project", "direction"),
)
_MODEL_SECONDS = Family(
    "histogram", "tallybook_model_seconds", "Time of a call to the model server.", (), _SECONDS
)
_MODEL_IN_FLIGHT = Family("gauge", "tallybook_model_in_flight", "Calls to the model server under way.")
_JOURNAL_WAIT_SECONDS = Family(
    "histogram", "tallybook_journal_wait_seconds", "Time until a usage event was durable.", (), _SECONDS
)
_COMMITS = Family(
    "histogram",
    "tallybook_journal_commit_events",
    "Usage events made durable by one sync.",
    (),
    _COMMIT_EVENTS,
)
_FIRST_TOKEN_SECONDS = Family(
    "histogram", "tallybook_first_token_seconds", "Time to the first token of a stream.", ("model",), _LONG
)
_SERVED_SECONDS = Family(
    "histogram",
    "tallybook_served_seconds",
    "Time from a request for a model to its whole answer, recorded.",
    ("model",),
    _LONG,
)
_JOURNAL_WAITING = Family(
    "gauge", "tallybook_journal_waiting_events", "Usage events that wait for the disk or for Kafka."
)
_BACKLOG = Family(
    "gauge",
    "tallybook_kafka_backlog_bytes",
    "How much of the journal is not in Kafka yet.",
)
_JOURNAL_UNAVAILABLE = Family(
    "gauge", "tallybook_journal_unavailable", "Workers that can't record usage now, and so serve nothing."
)
_JOURNAL_BYTES = Family("counter", "tallybook_journal_bytes_total", "Bytes of usage events made durable.")
_QUEUE_WAITING = Family("gauge", "tallybook_queue_waiting", "Requests that wait for a place.", ("model",))
_QUEUE_SECONDS = Family(
    "histogram",
    "tallybook_queue_seconds",
    "Time until a request that had to wait got its place.",
    ("model",),
    _SECONDS,
)
_QUEUE_REFUSED = Family(
    "counter",
    "tallybook_queue_refused_total",
    "Requests refused with 503: no room to wait was left (full), or no turn came in time (deadline).",
    ("model", "reason"),
)
_SHOWN_FROM_THE_START = (
    _REQUESTS,
    _REQUEST_SECONDS,
    _SERVED_SECONDS,
    _FIRST_TOKEN_SECONDS,
    _TOKENS,
    _QUEUE_WAITING,
    _QUEUE_SECONDS,
    _QUEUE_REFUSED,
)


class Metrics:
    """The metrics of one process; with several workers, /metrics of any of them adds all up."""

    def __init__(self) -> None:
        folder = os.environ.get(METRICS_FOLDER_VARIABLE)
        self._tallies = tallies = Tallies(None if folder is None else Path(folder))
        self._registry = CollectorRegistry()
        if folder is None:
            ProcessCollector(registry=self._registry)
        self._registry.register(tallies)
        self._registry.register(Gpus())
        if folder is not None:
            threading.Thread(target=self._refresh, name="metrics", daemon=True).start()
        for family in _SHOWN_FROM_THE_START:
            tallies.add(family)
        self.model_seconds = tallies.histogram(_MODEL_SECONDS)
        self.model_in_flight = tallies.number(_MODEL_IN_FLIGHT)
        self.journal_wait_seconds = tallies.histogram(_JOURNAL_WAIT_SECONDS)
        self._commit_events = tallies.histogram(_COMMITS)
        self._journal_bytes = tallies.number(_JOURNAL_BYTES)
        self._route_metrics: dict[tuple[str, int], tuple[Number, Histogram]] = {}
        self._token_metrics: dict[tuple[str, str, str], tuple[Number, Number]] = {}
        self._served: dict[str, Histogram] = {}
        self._projects: set[str] = set()

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count an answered request. `route` is a route of ours, never a path."""
        key = (route, status)
        found = self._route_metrics.get(key)
        if found is None:
            found = (
                self._tallies.number(_REQUESTS, route, str(status)),
                self._tallies.histogram(_REQUEST_SECONDS, route),
            )
            self._route_metrics[key] = found
        found[0].inc()
        found[1].observe(seconds)

    def tokens(self, model: str, version: str, project: str, prompt: int, completion: int) -> None:
        """Count the tokens of a recorded request."""
        key = (model, version, project)
        found = self._token_metrics.get(key)
        if found is None:
            key = (model, version, self._label(project))
            found = (
                self._tallies.number(_TOKENS, *key, "prompt"),
                self._tallies.number(_TOKENS, *key, "completion"),
            )
            self._token_metrics[key] = found
        found[0].inc(prompt)
        found[1].inc(completion)

    def queue_waiting(self, model: str) -> Number:
        """How many requests wait for a model."""
        return self._tallies.number(_QUEUE_WAITING, model)

    def queue_seconds(self, model: str) -> Histogram:
        """How long they waited."""
        return self._tallies.histogram(_QUEUE_SECONDS, model)

    def queue_refused(self, model: str, reason: str) -> Number:
        """How many were refused."""
        return self._tallies.number(_QUEUE_REFUSED, model, reason)

    def served(self, model: str, seconds: float, first_token_seconds: float | None) -> None:
        """Count a recorded answer of a model."""
        found = self._served.get(model)
        if found is None:
            found = self._served[model] = self._tallies.histogram(_SERVED_SECONDS, model)
        found.observe(seconds)
        if first_token_seconds is not None:
            self._tallies.histogram(_FIRST_TOKEN_SECONDS, model).observe(first_token_seconds)

    def watch(self, waiting: Callable[[], int], problem: Callable[[], str | None]) -> None:
        """Show the events that wait for the journal, and whether it can be written."""
        self._tallies.watch(_JOURNAL_WAITING, waiting)
        self._tallies.watch(_JOURNAL_UNAVAILABLE, lambda: float(problem() is not None))

    def watch_reserved(self, tokens: Callable[[], int]) -> None:
        """Show the tokens that quotas hold; the counters are one for all workers."""
        self._registry.register(_Reserved(tokens))

    def watch_lag(self, told: Callable[[], tuple[int, float] | None]) -> None:
        """Show what of the journal the ledger does not have; the journal is one for all workers."""
        self._registry.register(_Lag(told))

    def watch_backlog(self, size_bytes: Callable[[], int]) -> None:
        """Show how far Kafka is behind the journal."""
        self._tallies.watch(_BACKLOG, size_bytes)

    def commit(self, events: int, size_bytes: int) -> None:
        """Count a durable batch of the journal."""
        self._commit_events.observe(events)
        self._journal_bytes.inc(size_bytes)

    def exposition(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self._registry)

    def _refresh(self) -> None:
        """Keep gauges fresh that another worker shows."""
        while True:
            time.sleep(_REFRESH_SECONDS)
            self._tallies.refresh()

    def _label(self, project: str) -> str:
        if project not in self._projects:
            if len(self._projects) >= _MOST_PROJECTS:
                return OTHER_PROJECTS
            self._projects.add(project)
        return project


class _Reserved:
    """A collector of prometheus-client: no metric where the counters can't be asked now."""

    def __init__(self, tokens: Callable[[], int]) -> None:
        self._tokens = tokens

    def collect(self) -> Iterator[Metric]:
        """What is held when it is shown."""
        try:
            held = self._tokens()
        except ApiError:
            return
        yield GaugeMetricFamily(
            "tallybook_reserved_tokens", "Tokens of quotas held by requests under way.", value=held
        )


class _Lag:
    """A collector of prometheus-client: no metric while nobody knows."""

    def __init__(self, told: Callable[[], tuple[int, float] | None]) -> None:
        self._told = told

    def collect(self) -> Iterator[Metric]:
        """What was found at the last look."""
        told = self._told()
        if told is None:
            return
        yield GaugeMetricFamily(
            "tallybook_journal_unread_bytes", "Bytes of the journal that the ledger has not read.", told[0]
        )
        yield GaugeMetricFamily(
            "tallybook_journal_unread_seconds", "Age of the oldest event that it has not read.", told[1]
        )
