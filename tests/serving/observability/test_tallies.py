import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client import Histogram as Reference

from serving.observability import tallies
from serving.observability.tallies import Family, Tallies

COUNTER = Family("counter", "things_total", "Things.", ("kind",))
GAUGE = Family("gauge", "under_way", "Things under way.")
HISTOGRAM = Family("histogram", "seconds", "How long.", ("kind",), (0.1, 1.0, 2.5))


def text(made: Tallies) -> str:
    registry = CollectorRegistry()
    registry.register(made)
    return generate_latest(registry).decode()


@given(st.lists(st.floats(0, 10) | st.sampled_from(HISTOGRAM.bounds)))
def test_a_histogram_shows_what_prometheus_client_would_show(values: list[float]) -> None:
    made, registry = Tallies(), CollectorRegistry()
    reference = Reference("seconds", "How long.", ["kind"], buckets=HISTOGRAM.bounds, registry=registry)
    ours, theirs = made.histogram(HISTOGRAM, 'a"b'), reference.labels('a"b')
    for value in values:
        ours.observe(value)
        theirs.observe(value)
    expected = [line for line in generate_latest(registry).decode().splitlines() if "created" not in line]
    assert text(made).splitlines() == expected


def test_counts_of_many_threads_are_all_there() -> None:
    made = Tallies()
    counter, histogram = made.number(COUNTER, "a"), made.histogram(HISTOGRAM, "a")

    def count(_: int) -> None:
        for _ in range(2000):
            counter.inc(2)
            histogram.observe(0.5)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count, range(8)))
    shown = text(made)
    assert 'things_total{kind="a"} 32000.0' in shown
    assert 'seconds_count{kind="a"} 16000.0' in shown
    assert 'seconds_sum{kind="a"} 8000.0' in shown


def test_the_same_labels_are_the_same_series() -> None:
    made = Tallies()
    for _ in range(2):
        made.number(COUNTER, "a").inc()
    assert 'things_total{kind="a"} 2.0' in text(made)


def test_series_for_which_there_is_no_room_disturb_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tallies, "_NUMBERS", 3)
    made = Tallies()
    for kind in ("a", "b", "c", "d"):
        made.number(COUNTER, kind).inc()
    shown = text(made)
    assert [f'kind="{kind}"}} 1.0' in shown for kind in "abcd"] == [True, True, False, False]
    assert "no room" in caplog.text


def test_workers_add_up_and_a_gauge_of_a_killed_one_counts_no_more(tmp_path: Path) -> None:
    program = f"""
import os
from pathlib import Path
from serving.observability.tallies import Tallies
from tests.serving.observability.test_tallies import COUNTER, GAUGE, HISTOGRAM
made = Tallies(Path({str(tmp_path)!r}))
made.number(COUNTER, "a").inc(3)
made.number(GAUGE).inc()
made.histogram(HISTOGRAM, "a").observe(0.5)
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", program], env={**os.environ}, check=False)
    made = Tallies(tmp_path)
    for number in (made.number(COUNTER, "a"), made.number(COUNTER, "b"), made.number(GAUGE)):
        number.inc()
    made.add(HISTOGRAM)
    shown = text(made)
    assert 'things_total{kind="a"} 4.0' in shown
    assert 'things_total{kind="b"} 1.0' in shown
    assert "under_way 1.0" in shown
    assert 'seconds_count{kind="a"} 1.0' in shown
