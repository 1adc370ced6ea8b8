"""The forecast: better than the last week again where it is shown, and plain words where little is known."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from datetime import date
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image
from sqlalchemy.engine import Engine

from billing.costs.file import CostList, Pool
from billing.day_sums import sum_days
from billing.errors import ForecastError
from billing.forecast.model import days_missing, forecast
from billing.forecast.report import Report, forecast_report, quarter_after
from billing.forecast.text import draw_forecast, tell_forecast, write_forecast
from billing.ledger import open_ledger, reading, writing
from billing.tables import bill_lines
from tallybook.calendar import ONE_DAY, today
from tallybook.cli import main
from tests.billing.conftest import SIMULATED_LAST, TIME_ZONE
from tests.billing.days import at, bring, close
from tests.billing.factories import DAY, ZONE, an_event

WEEK = (100, 100, 100, 100, 90, 20, 10)


def noisy(weeks: int, growth: float = 0.0, noise: float = 0.1, seed: int = 1) -> NDArray[np.int64]:
    chance = np.random.default_rng(seed)
    level = np.exp(growth * np.arange(weeks * 7) / 7 + noise * chance.normal(size=weeks * 7))
    return np.asarray(1_000 * np.resize(np.array(WEEK), weeks * 7) * level, np.int64)


def ahead(tokens: NDArray[np.int64], days: int = 28) -> NDArray[np.float64]:
    return forecast(tokens, tokens < 0, days).expected


@pytest.fixture(scope="module")
def simulated(five_months: Engine) -> Report:
    with reading(five_months) as connection:
        return forecast_report(connection, SIMULATED_LAST, None)


def test_on_the_simulated_history_the_seasonal_model_beats_the_last_week_again(simulated: Report) -> None:
    total = simulated.series[0]
    assert (total.kind, total.forecast.method) == ("total", "model")
    assert total.forecast.error is not None
    assert total.forecast.naive_error is not None
    assert total.forecast.error < 0.9 * total.forecast.naive_error
    shown = [each.forecast for each in simulated.series if each.forecast.method == "model"]
    assert len(shown) >= len(simulated.series) / 2
    assert all(f.error is not None and f.naive_error is not None and f.error < f.naive_error for f in shown)


def test_the_interval_holds_about_eight_of_ten_days_that_came() -> None:
    inside = []
    for seed in range(4):
        whole = noisy(20, growth=0.01, seed=seed)
        told = forecast(whole[:-28], whole[:-28] < 0, 28)
        low, high = told.band()
        inside += list((low <= whole[-28:]) & (whole[-28:] <= high))
    assert 0.6 < np.mean(inside) < 0.97


def test_a_weekly_season_goes_on() -> None:
    told = ahead(noisy(16))
    assert told[:5].min() > 3 * told[5:7].max()
    assert told[:7].sum() == pytest.approx(520_000, rel=0.1)


def test_one_surge_does_not_become_a_habit() -> None:
    quiet, surged = noisy(16), noisy(16)
    surged[-3] *= 30
    assert ahead(surged).sum() == pytest.approx(ahead(quiet).sum(), rel=0.1)


def test_missing_days_are_filled_and_days_without_usage_are_not() -> None:
    whole = noisy(16)
    gone = np.zeros(len(whole), bool)
    gone[-13:-10] = True
    with_gap = np.where(gone, 0, whole)
    filled = forecast(with_gap, gone, 28).expected.sum()
    assert filled == pytest.approx(ahead(whole).sum(), rel=0.1)


def test_a_weekend_that_is_mostly_free_is_no_gap_of_the_metering() -> None:
    weekdays = np.tile(np.array([5000] * 5 + [0, 0], np.int64), 16)
    weekdays[5 + 14 * 7] = 4000  # somebody worked on one Saturday
    assert not days_missing(weekdays).any()
    ahead_of = forecast(weekdays, days_missing(weekdays), 14).expected
    assert ahead_of[[5, 6, 12, 13]].max() < 500
    outage = weekdays.copy()
    outage[51:53] = 0  # a Wednesday and a Thursday
    assert np.flatnonzero(days_missing(outage)).tolist() == [51, 52]


def test_one_event_of_a_wrong_clock_makes_no_history() -> None:
    tokens = np.concatenate([[120], np.zeros(699, np.int64), noisy(20)[:20]])
    missing = days_missing(tokens)
    assert not missing.any()
    told = forecast(tokens, missing, 30)
    assert (told.method, told.reason, told.error) == ("naive", "short", None)


def test_what_is_noise_alone_is_told_by_the_better_of_two() -> None:
    told = forecast(noisy(16, noise=0.0), np.zeros(112, bool), 14)
    assert (told.method, told.reason) == ("naive", "not_better")  # the last week again is exact
    assert told.naive_error == 0.0


@pytest.mark.parametrize(
    ("days", "method", "reason"),
    [(0, "none", "unused"), (13, "none", "too_short"), (14, "naive", "short"), (83, "naive", "short")],
)
def test_little_history_is_said_to_be_little(days: int, method: str, reason: str) -> None:
    tokens = np.concatenate([np.zeros(100, np.int64), noisy(20)[:days]])
    told = forecast(tokens, np.zeros(len(tokens), bool), 30)
    assert (told.method, told.reason) == (method, reason)
    assert (told.error, told.naive_error) == (None, None)
    assert told.expected.shape == (30,)


def test_what_is_no_longer_used_is_not_forecast() -> None:
    tokens = np.concatenate([noisy(20), np.zeros(28, np.int64)])
    assert forecast(tokens, np.zeros(len(tokens), bool), 30).reason == "unused"


def test_the_same_history_has_the_same_forecast() -> None:
    first, second = (forecast(noisy(16), np.zeros(112, bool), 90).between(10, 80) for _ in range(2))
    assert first == second
    assert first[1] <= first[0] <= first[2]


@pytest.mark.parametrize(
    ("day", "first", "last"),
    [
        ("2026-11-26", "2027-01-01", "2027-03-31"),
        ("2026-12-31", "2027-01-01", "2027-03-31"),
        ("2027-01-01", "2027-04-01", "2027-06-30"),
        ("2028-08-31", "2028-10-01", "2028-12-31"),
    ],
)
def test_the_quarter_is_the_calendar_quarter_after_the_last_day(day: str, first: str, last: str) -> None:
    assert [str(each) for each in quarter_after(date.fromisoformat(day))] == [first, last]


def test_cost_is_what_a_token_was_billed_at_and_capacity_what_the_busiest_hour_needs(
    sqlite_ledger: Engine,
) -> None:
    days = [DAY - number * ONE_DAY for number in reversed(range(20))]
    for day in days:
        bring(sqlite_ledger, [an_event(time=at(day, hour), prompt_tokens=36_000) for hour in (9, 9, 9, 15)])
        close(sqlite_ledger, day)
    can = {"review-sentiment": Decimal(60)}
    pool = Pool("gpu", DAY - 40 * ONE_DAY, 1, Decimal(1), ("review-sentiment",), can)
    with writing(sqlite_ledger) as connection:
        sum_days(connection, days[0], DAY)
    with reading(sqlite_ledger) as connection:
        told = forecast_report(connection, DAY, CostList("CNY", [pool]))
        minor, tokens = connection.execute(
            sa.select(sa.func.sum(bill_lines.c.amount_minor), sa.func.sum(bill_lines.c.quantity_tokens))
        ).one()
    total, _, model = told.series
    assert total.forecast.method == "naive"
    assert total.tokens[0] == 90 * 4 * 36_020
    assert total.cost is not None
    assert total.cost[0] == round(total.tokens[0] * Fraction(minor, tokens))
    assert model.capacity is not None
    assert (model.capacity.needed, model.capacity.pool) == (31, "gpu")  # 3 * 36,020 in an hour
    assert "review-sentiment: 31, perhaps 31; the pool gpu can do 60: 52% of it" in tell_forecast(told)
    large = CostList("CNY", [replace(pool, tokens_per_second={"review-sentiment": Decimal(60_000)})])
    with reading(sqlite_ledger) as connection:
        told = forecast_report(connection, DAY, large)
    assert "can do 60,000: under 1% of it" in tell_forecast(told)


def test_text_csv_and_charts_tell_the_same_series(simulated: Report) -> None:
    text = tell_forecast(simulated)
    assert text.startswith("Forecast of 2026-10-01 to 2026-12-31, from 150 days up to 2026-09-30.")
    assert "model trial-model: less than two weeks of usage: nothing is forecast." in text
    assert max(map(len, text.splitlines())) <= 110
    rows = list(csv.DictReader(io.StringIO(write_forecast(simulated).decode())))
    first = [row for row in rows if row["kind"] == "total"]
    assert [row["day"] for row in first[:2]] == ["2026-10-01", "2026-10-02"]
    assert len(first) == 92
    assert sum(int(row["expected_tokens"]) for row in first) == pytest.approx(
        simulated.series[0].tokens[0], abs=92
    )
    assert all(int(r["low_tokens"]) <= int(r["expected_tokens"]) <= int(r["high_tokens"]) for r in rows)
    for kind in ("total", "department", "model"):
        image = draw_forecast(simulated, kind, "zh", simulated=True)
        assert image is not None
        assert Image.open(io.BytesIO(image)).width == 1200


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (9_999, "9,999"), (10_000, "10.0 k"), (999_499, "999 k"), (999_500, "1.00 M"), (24_349_999, "24.3 M"),
        (999_999_999, "1.00 G"), (1_204_000_000, "1.20 G"), (1_234_567_890_123, "1,230 G"),
    ],
)  # fmt: skip
def test_tokens_are_told_in_three_digits(simulated: Report, tokens: int, said: str) -> None:
    total = replace(simulated.series[0], tokens=(tokens, tokens, tokens))
    text = " ".join(tell_forecast(replace(simulated, series=[total])).split())
    assert f" total {said} {said} – {said} " in text


def test_a_ledger_without_usage_has_no_forecast(sqlite_ledger: Engine) -> None:
    with pytest.raises(ForecastError) as refused, reading(sqlite_ledger) as connection:
        forecast_report(connection, DAY, None)
    assert refused.value.code == "no_history"


def test_the_command_writes_its_files_and_refuses_days_that_are_not_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TALLYBOOK_LEDGER_URL", f"sqlite:///{tmp_path / 'ledger.db'}")
    ledger = open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}", TIME_ZONE)
    bring(ledger, [an_event(time=at(DAY - number * ONE_DAY)) for number in range(20)])
    options = ["forecast", "--until", str(DAY), "--out", str(tmp_path / "out")]
    told = CliRunner().invoke(main, options)
    assert told.exit_code == 0, told.output
    assert "too few weeks to hold some back" in told.output
    written = {file.name for file in (tmp_path / "out").iterdir()}
    assert written == {"forecast.csv", *(f"forecast-{k}.png" for k in ("total", "department", "model"))}
    refused = CliRunner().invoke(main, ["forecast", "--until", str(today(ZONE))])
    assert (refused.exit_code, "is not over" in refused.output) == (2, True)
