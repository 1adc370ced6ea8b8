"""The costs of a day or month as the ledger stands: usage, bills and trainings, for `costs.recovery`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta, tzinfo
from decimal import Decimal
from fractions import Fraction

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing import money
from billing.aggregates import whole
from billing.billed import billed_by
from billing.costs.file import CostList
from billing.costs.recovery import PoolRecovery, Recovery, Sums, recover
from billing.errors import DayError
from billing.tables import bill_lines, training_runs, usage_hours
from tallybook.calendar import Interval, billing_day, day_interval, month_days


@dataclass(frozen=True)
class CostsReport:
    """A period up to `until`; `elsewhere` are models that were used or trained while no pool had them."""

    period: str
    currency: str
    until: datetime
    seconds: Fraction
    pools: list[PoolRecovery]
    elsewhere: dict[str, Recovery]


def days_of(period: str) -> list[date]:
    """The billing days of "YYYY-MM-DD" or "YYYY-MM". Raises: ValueError."""
    is_day = len(period) == len("YYYY-MM-DD")
    first = date.fromisoformat(period if is_day else f"{period}-01")
    return [first] if is_day else month_days(first)


def costs_report(
    connection: Connection, costs: CostList, period: str, zone: tzinfo, now: datetime
) -> CostsReport:
    """Set the pools' costs from the period's start until now, or its end, against what its usage was billed.

    Usage is read from the hours, so events must be rolled up before; trainings count in the period in which
    they ended.
    Raises: DayError: the period has not begun (code day_in_future). LedgerError: bills in another currency.
    """
    days = days_of(period)
    interval = Interval(day_interval(days[0], zone).start, day_interval(days[-1], zone).end)
    until = min(interval.end, now).astimezone(zone)
    if until <= interval.start:
        raise DayError("day_in_future", f"{period} has not begun")
    seconds = {day: _seconds(day, zone, until) for day in days}
    usage = [
        *_used(connection, days[0], days[-1]),
        *_billed(connection, days[0], days[-1], costs.currency),
        *_trained(connection, interval, zone, costs.currency),
    ]
    pools, elsewhere = recover(seconds, costs, usage)
    return CostsReport(period, costs.currency, until, sum(seconds.values(), Fraction(0)), pools, elsewhere)


def pools_by_day(
    connection: Connection, costs: CostList, days: Sequence[date], zone: tzinfo, now: datetime
) -> Iterator[tuple[date, list[PoolRecovery]]]:
    """What each pool cost and was used for on each day, in one reading of them all; trainings left out."""
    used: dict[date, list[tuple[date, str, Sums]]] = defaultdict(list)
    for usage in _used(connection, min(days), max(days)):
        used[usage[0]].append(usage)
    for day in days:
        yield day, recover({day: _seconds(day, zone, now)}, costs, used[day])[0]


def _seconds(day: date, zone: tzinfo, until: datetime) -> Fraction:
    """How much of a day is over; days of 23 and 25 hours are that long."""
    start, end = day_interval(day, zone)
    over = min(end, until) - start
    return Fraction(max(over // timedelta(microseconds=1), 0), 10**6)


def _used(connection: Connection, first: date, last: date) -> Iterator[tuple[date, str, Sums]]:
    """Tokens, all of them still unbilled: what lines say of them is added."""
    hours = usage_hours.c
    tokens = whole(sa.func.sum(hours.prompt_tokens + hours.completion_tokens))
    query = sa.select(hours.day, hours.model, tokens).where(hours.day.between(first, last))
    for day, model, total in connection.execute(query.group_by(hours.day, hours.model)):
        yield day, model, Sums(tokens=total, unbilled_tokens=total)


def _billed(
    connection: Connection, first: date, last: date, currency: str
) -> Iterator[tuple[date, str, Sums]]:
    for found in billed_by(connection, first, last, bill_lines.c.model, currency):
        yield (
            found.usage_day,
            found.name,
            Sums(
                billed=Fraction(money.to_decimal(found.amount_minor, currency)),
                draft=Fraction(money.to_decimal(found.draft_minor, currency)),
                unrated_tokens=found.unrated_tokens,
                unbilled_tokens=-found.tokens,
            ),
        )


def _trained(
    connection: Connection, interval: Interval, zone: tzinfo, currency: str
) -> Iterator[tuple[date, str, Sums]]:
    run = training_runs.c
    query = sa.select(run.time, run.model, run.wall_seconds, run.pool_price_per_hour, run.currency)
    for row in connection.execute(query.where(run.time >= interval.start, run.time < interval.end)):
        sums = Sums(runs=1, unknown_runs=1)
        if row.currency == currency:
            hours = Fraction(Decimal(row.wall_seconds)) / 3600
            sums = Sums(runs=1, training_cost=hours * Fraction(Decimal(row.pool_price_per_hour)))
        yield billing_day(row.time, zone), row.model, sums
