"""The last thirty days, and the band in which such days used to lie."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from statistics import median
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing.aggregates import whole
from billing.selection import EVERYBODY, Owners, Whose
from billing.tables import bill_lines, event_batches, usage_hours
from billing.totals import by_owner
from tallybook.calendar import ONE_DAY

TREND_DAYS = 30
USUAL_WEEKS = 8
_LEAST_WEEKS = 4  # of the same weekday, before a day can be called usual
_SPREADS = 2.0
_NORMAL = 1.4826  # makes the median absolute deviation of normal values their standard deviation


class Usual(NamedTuple):
    """Between how many tokens such a weekday used to come to."""

    low: int
    high: int


@dataclass(frozen=True, slots=True)
class TrendDay:
    """Tokens of a day, and its bill; None when it has no bill in the report's currency.

    `usual` is None while nobody can know it, and for parts of a day.
    """

    day: date
    total_tokens: int
    amount_minor: int | None
    requests: int = 0
    usual: Usual | None = None


def usual(tokens: Mapping[date, int], day: date) -> Usual | None:
    """The median of the same weekday of the eight weeks before, give or take two robust deviations.

    Days before the first usage don't count; None with fewer than four weeks, or where most had no usage.
    """
    first = min(tokens, default=day)
    weeks = [day - timedelta(weeks=number) for number in range(1, USUAL_WEEKS + 1)]
    known = [tokens.get(each, 0) for each in weeks if each >= first]
    if len(known) < _LEAST_WEEKS:
        return None
    middle = median(known)
    if not middle:
        return None
    around = _SPREADS * _NORMAL * median(abs(value - middle) for value in known)
    return Usual(max(0, round(middle - around)), round(middle + around))


@dataclass(frozen=True)
class Trend:
    """What is known of the days up to `day`: requests and tokens, and amounts, by owner and day."""

    day: date
    used: Mapping[str, Mapping[date, tuple[int, int]]]
    amounts: Mapping[str, Mapping[date, int | None]]
    with_usual: bool

    @classmethod
    def read(cls, connection: Connection, day: date, whose: Whose, currency: str | None) -> Trend:
        """Read them; the band of the usual is told of everybody's days only."""
        first = day - timedelta(days=TREND_DAYS - 1)
        everybody = whose == EVERYBODY
        earliest = first - timedelta(weeks=USUAL_WEEKS) if everybody else first
        owner = whose.owner(bill_lines)
        billed = (
            sa.select(owner, bill_lines.c.day, sa.cast(sa.func.sum(bill_lines.c.amount_minor), sa.BigInteger))
            .where(bill_lines.c.day.between(first, day), bill_lines.c.currency == currency)
            .where(*whose.where(bill_lines))
            .group_by(*by_owner(owner), bill_lines.c.day)
        )
        amounts: dict[str, dict[date, int | None]] = defaultdict(dict)
        for name, each, minor in connection.execute(billed):
            amounts[name][each] = minor
        used: dict[str, dict[date, tuple[int, int]]] = defaultdict(dict)
        for name, each, requests, tokens in connection.execute(_used(whose, earliest, day)):
            used[name][each] = (requests, tokens)
        return cls(day, used, amounts, everybody)

    def of(self, owner: str) -> tuple[TrendDay, ...]:
        """One owner's last days, from the first that has usage or a bill, without gaps."""
        used, amounts = self.used.get(owner, {}), self.amounts.get(owner, {})
        first = self.day - timedelta(days=TREND_DAYS - 1)
        tokens = {day: count for day, (_, count) in used.items()}
        start = min([each for each in [*tokens, *amounts] if each >= first], default=self.day)
        days = [start + number * ONE_DAY for number in range((self.day - start).days + 1)]
        return tuple(
            TrendDay(
                each,
                tokens.get(each, 0),
                amounts.get(each),
                used.get(each, (0, 0))[0],
                usual(tokens, each) if self.with_usual else None,
            )
            for each in days
        )


def _used(whose: Whose, first: date, day: date) -> sa.Select[Any]:
    """Requests and tokens by owner and day, from the smallest table that has them.

    Of everybody, the batches; of one, the hours; of many owners the lines of the bills, which have tokens
    only: the hours of thirty days are a hundred times as many.
    """
    if isinstance(whose, Owners):
        line, owner = bill_lines.c, whose.owner(bill_lines)
        requests, tokens = sa.literal(0), whole(sa.func.sum(line.quantity_tokens))
        inside = [line.day.between(first, day), line.usage_day >= first, *whose.where(bill_lines)]
        return (
            sa.select(owner, line.usage_day, requests, tokens).where(*inside).group_by(owner, line.usage_day)
        )
    table = event_batches if whose == EVERYBODY else usage_hours
    owner = whose.owner(table)
    asked = whole(sa.func.sum(table.c.requests))
    tokens = whole(sa.func.sum(table.c.prompt_tokens + table.c.completion_tokens))
    inside = [table.c.day.between(first, day), *whose.where(table)]
    return sa.select(owner, table.c.day, asked, tokens).where(*inside).group_by(table.c.day)
