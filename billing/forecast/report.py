"""The forecast of the next quarter: tokens, cost and needed capacity of models and departments."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from fractions import Fraction
from typing import Literal

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.engine import Connection

from billing.aggregates import whole
from billing.costs.file import CostList
from billing.day_sums import Kind, history
from billing.errors import ForecastError
from billing.forecast.departments import by_payer
from billing.forecast.model import Forecast, days_missing, forecast
from billing.tables import bill_lines, event_batches, usage_hours
from tallybook.calendar import ONE_DAY, next_month

_RECENT = 28 * ONE_DAY  # of which prices and busy hours are taken
_HISTORY = 730 * ONE_DAY
SeriesKind = Literal["total", "department", "model"]
_KINDS: tuple[tuple[SeriesKind, Kind], ...] = (
    ("total", "department"), ("department", "department"), ("model", "model"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Capacity:
    """Tokens a second that a model needs in its busiest hour, and of what its pool can do, if known."""

    needed: int  # expected, at the end of the quarter
    most: int  # at the interval's upper end
    pool: str | None
    available: Decimal | None


@dataclass(frozen=True)
class Series:
    """One line of the forecast; `cost` of what is used now is at the prices of the last four weeks.

    Amounts are minor units of `currency`: expected, and the ends of the interval; None where nothing is
    billed yet.
    """

    kind: SeriesKind
    name: str
    used: NDArray[np.int64]
    forecast: Forecast
    tokens: tuple[int, int, int]
    cost: tuple[int, int, int] | None
    currency: str | None
    capacity: Capacity | None


@dataclass(frozen=True)
class Report:
    """A forecast: its history ends with `last`; the quarter is `first` to `end`, both included."""

    begun: date
    last: date
    first: date
    end: date
    gaps: list[date]
    series: list[Series]

    def day(self, ahead: int) -> date:
        """The day so many days after the last one, counted from 0."""
        return self.last + (ahead + 1) * ONE_DAY


def quarter_after(day: date) -> tuple[date, date]:
    """The first and the last day of the calendar quarter after the day's."""
    first = day.replace(month=(day.month - 1) // 3 * 3 + 1, day=1)
    for _ in range(3):
        first = next_month(first)
    after = first
    for _ in range(3):
        after = next_month(after)
    return first, after - ONE_DAY


def forecast_report(connection: Connection, last: date, costs: CostList | None) -> Report:
    """Forecast from the days up to `last`, which must be over; `sum_days` must have been called.

    Raises: ForecastError: there is no usage up to that day (code no_history).
    """
    begun = connection.scalar(sa.select(sa.func.min(event_batches.c.day)))
    if begun is None or begun > last:
        raise ForecastError("no_history", f"the ledger holds no usage up to {last}")
    begun = max(begun, last - _HISTORY)
    first, end = quarter_after(last)
    ahead = (end - last).days
    span = ((first - last).days - 1, ahead - 1)
    series: list[Series] = []
    missing = np.zeros(0, bool)
    days: list[date] = []
    for kind, source in _KINDS:
        told = history(connection, source, begun, last)
        if kind == "department":
            told = by_payer(connection, told)
        days, missing = told.days, days_missing(told.tokens.sum(axis=0))
        rows = dict(zip(told.names, told.tokens, strict=True))
        if kind == "total":
            rows = {"total": told.tokens.sum(axis=0)}
        for name, used in sorted(rows.items(), key=lambda row: -int(row[1][-28:].sum())):
            found = forecast(used, missing, ahead)
            tokens = found.between(*span)
            price, currency = _price(connection, kind, name, last)
            cost = None
            if price is not None:
                cost = (round(tokens[0] * price), round(tokens[1] * price), round(tokens[2] * price))
            need = _capacity(connection, name, found, span, last, costs) if kind == "model" else None
            series.append(Series(kind, name, used, found, tokens, cost, currency, need))
    gaps = [day for day, gone in zip(days, missing, strict=True) if gone]
    return Report(begun, last, first, end, gaps, series)


def _price(
    connection: Connection, kind: SeriesKind, name: str, last: date
) -> tuple[Fraction | None, str | None]:
    """Minor units a token of what was billed for the last four weeks; None: nothing, or in two currencies."""
    line = bill_lines.c
    of = {"department": line.department, "model": line.model}
    amount = whole(sa.func.sum(line.amount_minor))
    rated = whole(sa.func.sum(sa.case((line.price_id != "", line.quantity_tokens), else_=0)))
    query = sa.select(amount, rated, sa.func.min(line.currency), sa.func.max(line.currency)).where(
        line.usage_day.between(last - _RECENT + ONE_DAY, last)
    )
    if kind != "total":
        query = query.where(of[kind] == name)
    minor, tokens, least, greatest = connection.execute(query).one()
    if not tokens or least != greatest:
        return None, None
    return Fraction(minor, tokens), least


def _capacity(
    connection: Connection,
    model: str,
    found: Forecast,
    span: tuple[int, int],
    last: date,
    costs: CostList | None,
) -> Capacity | None:
    """What the busiest hour of the quarter's last four weeks needs, if hours stay as uneven as they are."""
    tokens = whole(sa.func.sum(usage_hours.c.prompt_tokens + usage_hours.c.completion_tokens))
    query = (
        sa.select(usage_hours.c.day, tokens)
        .where(usage_hours.c.model == model, usage_hours.c.day.between(last - _RECENT + ONE_DAY, last))
        .group_by(usage_hours.c.day, usage_hours.c.hour)
    )
    by_day: dict[date, list[int]] = {}
    for day, count in connection.execute(query):
        by_day.setdefault(day, []).append(count)
    shares = [max(hours) / sum(hours) for hours in by_day.values() if sum(hours)]
    if not shares or found.method == "none":
        return None
    share = float(np.quantile(shares, 0.9))
    low = max(span[0], span[1] - 27)
    expected, (_, upper) = found.expected[low : span[1] + 1], found.band()
    a_second = share / 3600
    pool = costs.of_models(last).get(model) if costs else None
    return Capacity(
        int(np.ceil(expected.max() * a_second)),
        int(np.ceil(upper[low : span[1] + 1].max() * a_second)),
        pool.name if pool else None,
        pool.tokens_per_second.get(model) if pool else None,
    )
