"""What was metered against the servers' counters: bounds, restarts and what is not known."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.reconciliation.counters import COMPLETION_TOKENS, PROMPT_TOKENS, REQUESTS, UP
from billing.reconciliation.metered import Row, Sample, Served, reconcile, served_in
from billing.reconciliation.text import render, share
from tallybook.calendar import Interval, day_interval
from tests.billing.factories import DAY, NOON, ZONE

HOUR = Interval(NOON, NOON + timedelta(hours=1))
MODEL = "review-sentiment"


def at(minutes: float) -> datetime:
    """So many minutes after noon."""
    return NOON + timedelta(minutes=minutes)


@pytest.mark.parametrize(
    ("values", "served"),
    [
        pytest.param([(0, 10), (60, 25)], Served(15, 15), id="on the edges"),
        pytest.param([(-5, 10), (5, 14), (55, 30), (65, 33)], Served(16, 23), id="across the edges"),
        pytest.param([(-5, 10), (65, 33)], Served(0, 23), id="both samples outside"),
        pytest.param([(-90, 3), (-5, 10), (5, 10), (65, 10), (90, 99)], Served(0, 0), id="idle"),
        pytest.param([(5, 14), (55, 30), (65, 33)], Served(16, None), id="none before"),
        pytest.param([(-5, 14), (5, 14), (55, 30)], Served(16, None), id="none after"),
        pytest.param([(30, 14)], Served(0, None), id="one only"),
        pytest.param([], Served(0, None), id="none"),
        pytest.param([(0, 90), (30, 100), (40, 7), (60, 9)], Served(19, None), id="restarted"),
        pytest.param([(-90, 90), (-30, 3), (0, 5), (60, 9)], Served(4, 4), id="restarted before"),
    ],
)
def test_an_increase_belongs_to_the_hour_that_holds_both_samples(
    values: list[tuple[float, int]], served: Served
) -> None:
    assert served_in(HOUR, [(at(minutes), value) for minutes, value in values]) == served


@given(st.lists(st.integers(0, 240), max_size=40), st.lists(st.integers(0, 240), max_size=12))
def test_what_was_served_lies_within_the_bounds(requests: list[int], samples: list[int]) -> None:
    values = [(at(m), sum(r <= m for r in requests)) for m in sorted(set(samples))]
    for start in (0, 60, 120, 180):
        found = served_in(Interval(at(start), at(start + 60)), values)
        truth = sum(start < r <= start + 60 for r in requests)
        assert found.least <= truth
        assert found.most is None or found.most >= truth


@pytest.mark.parametrize(
    ("metered", "served", "told"),
    [
        (90, Served(100, 100), "10.0%"),
        (100, Served(100, 105), "0.0%–4.8%"),
        (101, Served(100, 100), "-1.0%"),
        (0, Served(7, 7), "100.0%"),
        (5, Served(0, 10), "≤ 50.0%"),
        (90, Served(100, None), "≥ 10.0%"),
        (90, Served(0, None), "unknown"),
        (0, Served(0, 0), ""),
    ],
)
def test_the_unmetered_share_keeps_its_bounds(metered: int, served: Served, told: str) -> None:
    assert share(metered, served) == told


def told(server: str, minutes: float, values: dict[tuple[str, str], int]) -> list[Sample]:
    """All samples of one scrape."""
    return [Sample(server, at(minutes), *key, value) for key, value in {("", UP): 1, **values}.items()]


def row_of(rows: list[Row], model: str, start: datetime = NOON) -> Row:
    (found,) = [row for row in rows if row.model == model and row.span.start == start]
    return found


def test_servers_of_a_model_are_summed_and_tokens_compared_where_they_are_counted() -> None:
    samples = []
    for server, speed in (("http://a", 1), ("http://b", 2)):
        for minutes in (0, 60):
            n = minutes * speed
            engine = {("qwen", REQUESTS): n, ("qwen", PROMPT_TOKENS): 9 * n, ("qwen", COMPLETION_TOKENS): n}
            samples += told(server, minutes, {(MODEL, REQUESTS): n, **engine})
    span = day_interval(DAY, ZONE)
    found = reconcile(span, samples, {(MODEL, NOON): (150, 4000), ("qwen", NOON): (180, 1700)})
    sentiment, qwen = row_of(found.hours, MODEL), row_of(found.hours, "qwen")
    assert (sentiment.requests.metered, sentiment.requests.served) == (150, Served(180, 180))
    assert (sentiment.tokens.metered, sentiment.tokens.served) == (4000, None)
    assert (qwen.tokens.metered, qwen.tokens.served) == (1700, Served(1800, 1800))


def test_a_model_that_a_server_did_not_tell_of_yet_had_none() -> None:
    samples = told("http://a", 0, {}) + told("http://a", 60, {(MODEL, REQUESTS): 7})
    found = reconcile(HOUR, samples, {})
    assert row_of(found.days, MODEL).requests.served == Served(7, 7)


def test_a_server_that_can_not_be_asked_makes_the_sum_unknown_upwards() -> None:
    down = [Sample("http://b", at(60), "", UP, 0)]
    samples = [s for m in (0, 60) for s in told("http://a", m, {(MODEL, REQUESTS): m})]
    samples += told("http://b", 30, {(MODEL, REQUESTS): 5}) + down
    found = reconcile(HOUR, samples, {})
    assert row_of(found.days, MODEL).requests.served == Served(60, None)
    assert found.failed_samples == 0  # at the very end, which is not in the hour


def test_the_table_says_what_is_known_and_fits_a_hundred_columns(tmp_path: Path) -> None:
    samples = []
    for n, minutes in enumerate((-2, 3, 58, 63, 118, 200, 245)):
        samples += told("http://a", minutes, {(MODEL, REQUESTS): 3_000_000 * n})
        engine = {("qwen", REQUESTS): 10 * n, ("qwen", PROMPT_TOKENS): 1_000_000_000 * n}
        samples += told("http://b", minutes, engine)
    metered = {(MODEL, NOON): (3_100_000, 99_000_000), ("qwen", NOON): (14, 990_000_000)}
    lines = list(render(reconcile(day_interval(DAY, ZONE), samples, metered), DAY, ZONE))
    (tmp_path / "table").write_text("\n".join(lines))
    assert max(map(len, lines)) <= 100
    assert lines.count("unknown, and nothing metered: 00:00–12:00, 16:00–00:00") == 2
    hour = [line.split() for line in lines if line.startswith("12:00")][1]
    assert hour == ["12:00", "3,100,000", "3,000,000–9,000,000", "-3.3%–65.6%", "99,000,000", "–"]
