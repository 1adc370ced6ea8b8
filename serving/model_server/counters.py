"""What the model server has done since it started, under the names that TensorFlow Serving counts it by."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc

from serving.model_server.errors import ModelServerError

REQUESTS = ":tensorflow:serving:request_count"
LATENCY = ":tensorflow:serving:request_latency"
# As in TensorFlow Serving: 33 limits from 10 µs to about 20 minutes, each 1.8 times the one before.
_LIMITS_MICROSECONDS = [10 * 1.8**n for n in range(33)]


class Counters:
    """Requests by model and status, and the time of those that succeeded. Safe for many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: dict[tuple[str, str], int] = {}
        self._latencies: dict[tuple[str, str, str], _Histogram] = {}

    @contextmanager
    def counting(self, api: str, entrypoint: str, model: str, known: Callable[[str], bool]) -> Iterator[None]:
        """Count what happens inside as one request: its status by the ModelServerError that it raises.

        Failures count only where the model is `known`: names that clients make up would fill the memory.
        """
        started = time.monotonic()
        status = grpc.StatusCode.INTERNAL
        try:
            yield
            status = grpc.StatusCode.OK
        except ModelServerError as error:
            status = error.status
            raise
        finally:
            if status is grpc.StatusCode.OK or known(model):
                self.count(model, api, entrypoint, status, time.monotonic() - started)

    def count(self, model: str, api: str, entrypoint: str, status: grpc.StatusCode, seconds: float) -> None:
        """Count one answered request; `seconds` is how long it took."""
        with self._lock:
            key = (model, status.name)
            self._requests[key] = self._requests.get(key, 0) + 1
            if status is grpc.StatusCode.OK:
                latency = self._latencies.get((model, api, entrypoint))
                if latency is None:
                    latency = self._latencies[(model, api, entrypoint)] = _Histogram()
                latency.add(seconds * 1e6)

    def exposition(self) -> str:
        """All of it in Prometheus's text format."""
        with self._lock:
            return "\n".join([*self._request_lines(), *self._latency_lines(), ""])

    def _request_lines(self) -> Iterator[str]:
        yield f"# TYPE {REQUESTS} counter"
        for (model, status), count in sorted(self._requests.items()):
            yield f'{REQUESTS}{{model_name="{model}",status="{status}"}} {count}'

    def _latency_lines(self) -> Iterator[str]:
        yield f"# TYPE {LATENCY} histogram"
        for (model, api, entrypoint), latency in sorted(self._latencies.items()):
            labels = f'model_name="{model}",API="{api}",entrypoint="{entrypoint}"'
            below = 0
            for limit, count in zip([*_LIMITS_MICROSECONDS, None], latency.counts, strict=True):
                below += count
                told = "+Inf" if limit is None else f"{limit:g}"
                yield f'{LATENCY}_bucket{{{labels},le="{told}"}} {below}'
            yield f"{LATENCY}_sum{{{labels}}} {latency.sum_microseconds:g}"
            yield f"{LATENCY}_count{{{labels}}} {below}"


class _Histogram:
    def __init__(self) -> None:
        self.counts = [0] * (len(_LIMITS_MICROSECONDS) + 1)
        self.sum_microseconds = 0.0

    def add(self, microseconds: float) -> None:
        self.counts[bisect_left(_LIMITS_MICROSECONDS, microseconds)] += 1
        self.sum_microseconds += microseconds
