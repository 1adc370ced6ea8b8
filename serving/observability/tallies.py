"""Counters, gauges and histograms for Prometheus that cost a request a fraction of a microsecond each.

All numbers of a process stand in one block of memory. With several workers the block is a file, beside
another one that says which number is what, so that whichever worker is asked for /metrics can add up the
numbers of all, also of those that were killed. A gauge of a process that is gone counts no more.
"""

from __future__ import annotations

import logging
import mmap
import os
import secrets
import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Literal, NamedTuple

import orjson
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

_NUMBERS = 1 << 17  # of a process: a megabyte, of which the system keeps what was touched
_BYTES = 8  # of a number
_SPILL = 0  # where numbers go for which there is no room

log = logging.getLogger(__name__)


class Family(NamedTuple):
    """A metric: its name, what it tells, and how its series differ."""

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()  # of a histogram's buckets

    @property
    def size(self) -> int:
        """How many numbers a series has: a histogram has its buckets, the one beyond all bounds, the sum."""
        return len(self.bounds) + 2 if self.kind == "histogram" else 1


class Number:
    """One series of a counter or a gauge. Safe for many threads."""

    __slots__ = ("_at", "_lock", "_numbers")

    def __init__(self, lock: threading.Lock, numbers: memoryview[float], at: int) -> None:
        self._lock = lock
        self._numbers = numbers
        self._at = at

    def inc(self, amount: float = 1.0) -> None:
        """Add to it."""
        with self._lock:
            self._numbers[self._at] += amount

    def dec(self) -> None:
        """Take one from a gauge."""
        with self._lock:
            self._numbers[self._at] -= 1.0

    def set(self, value: float) -> None:
        """Say what a gauge is."""
        self._numbers[self._at] = value


class Histogram:
    """One series of a histogram. Safe for many threads."""

    __slots__ = ("_at", "_bounds", "_lock", "_numbers", "_sum")

    def __init__(
        self, lock: threading.Lock, numbers: memoryview[float], at: int, bounds: tuple[float, ...]
    ) -> None:
        self._lock = lock
        self._numbers = numbers
        self._at = at
        self._bounds = bounds
        self._sum = at + len(bounds) + 1

    def observe(self, value: float) -> None:
        """Count a value."""
        at = self._at + bisect_left(self._bounds, value)
        with self._lock:
            self._numbers[at] += 1.0
            self._numbers[self._sum] += value


class Tallies:
    """The numbers of this process, and those of its siblings when there is a folder to share."""

    def __init__(self, folder: Path | None = None) -> None:
        """Begin at zero. Make it in the process that counts."""
        self._lock = threading.Lock()
        self._folder = folder
        self._families: dict[str, Family] = {}
        self._places: dict[tuple[str, tuple[str, ...]], int] = {}
        self._end = 1
        self._watched: list[tuple[Number, Callable[[], float]]] = []
        if folder is None:
            block = mmap.mmap(-1, _NUMBERS * _BYTES)
        else:
            self._mine = folder / f"{os.getpid()}-{secrets.token_hex(4)}"
            with self._mine.with_suffix(".numbers").open("w+b") as file:
                file.truncate(_NUMBERS * _BYTES)
                block = mmap.mmap(file.fileno(), _NUMBERS * _BYTES)
        self._numbers = memoryview(block).cast("d")

    def add(self, family: Family) -> None:
        """Make a metric known, so that it is shown."""
        self._families[family.name] = family

    def number(self, family: Family, *labels: str) -> Number:
        """The series of a counter or gauge with these values of its labels."""
        return Number(self._lock, self._numbers, self._place(family, labels))

    def histogram(self, family: Family, *labels: str) -> Histogram:
        """The series of a histogram with these values of its labels."""
        return Histogram(self._lock, self._numbers, self._place(family, labels), family.bounds)

    def watch(self, family: Family, read: Callable[[], float]) -> None:
        """A gauge that is read when it is shown, and now and then for the siblings that show it."""
        self._watched.append((self.number(family), read))

    def refresh(self) -> None:
        """Read what is watched."""
        for number, read in self._watched:
            number.set(read())

    def collect(self) -> Iterator[Metric]:
        """All metrics, summed over the processes that share the folder: a collector of prometheus-client."""
        self.refresh()
        sums = self._sums()
        for family in list(self._families.values()):
            yield _shown(family, sums[family.name])

    def _place(self, family: Family, labels: tuple[str, ...]) -> int:
        key = (family.name, labels)
        with self._lock:
            self._families.setdefault(family.name, family)
            place = self._places.get(key)
            if place is not None:
                return place
            if self._end + family.size > _NUMBERS:
                log.error("there is no room for more metrics: %s %s is not shown", *key)
                return _SPILL
            place = self._places[key] = self._end
            self._end += family.size
            if self._folder is not None:
                with self._mine.with_suffix(".index").open("ab") as index:
                    index.write(orjson.dumps([family.name, labels, place], option=orjson.OPT_APPEND_NEWLINE))
        return place

    def _sums(self) -> dict[str, dict[tuple[str, ...], list[float]]]:
        sums: dict[str, dict[tuple[str, ...], list[float]]] = defaultdict(dict)
        for name, labels, numbers in self._series():
            so_far = sums[name].get(labels)
            sums[name][labels] = (
                numbers if so_far is None else [a + b for a, b in zip(so_far, numbers, strict=True)]
            )
        return sums

    def _series(self) -> Iterator[tuple[str, tuple[str, ...], list[float]]]:
        if self._folder is None:
            for (name, labels), at in list(self._places.items()):
                yield name, labels, self._read(self._numbers, name, at)
            return
        for index in self._folder.glob("*.index"):
            alive = Path(f"/proc/{index.name.partition('-')[0]}").exists()
            with index.with_suffix(".numbers").open("rb") as file:
                numbers = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)).cast("d")
            for line in index.read_bytes().split(b"\n")[:-1]:
                name, labels, at = orjson.loads(line)
                if name in self._families and (alive or self._families[name].kind != "gauge"):
                    yield name, tuple(labels), self._read(numbers, name, at)

    def _read(self, numbers: memoryview[float], name: str, at: int) -> list[float]:
        return list(numbers[at : at + self._families[name].size])


def _shown(family: Family, series: dict[tuple[str, ...], list[float]]) -> Metric:
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        for labels, (*counts, total) in sorted(series.items()):
            histogram.add_metric(labels, _buckets(family.bounds, counts), total)
        return histogram
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    shown = kind(family.name.removesuffix("_total"), family.help, labels=family.labels)
    for labels, (value,) in sorted(series.items()):
        shown.add_metric(labels, value)
    return shown


def _buckets(bounds: Sequence[float], counts: Sequence[float]) -> list[tuple[str, float]]:
    return [
        (bound, count)
        for bound, count in zip([*map(str, map(float, bounds)), "+Inf"], accumulate(counts), strict=True)
    ]
