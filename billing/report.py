"""The report of one billing day: pure data, summed in the ledger, for charts, mails and pages."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta, tzinfo
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing.aggregates import whole
from billing.driver import Change, Driver, cost_change, main_driver, token_change
from billing.rating import UNRATED
from billing.tables import bill_days, bill_lines, set_aside, usage_hours
from billing.totals import Dimension, Part, Totals, day_parts, day_total, of_user
from tallybook.calendar import ONE_DAY, ONE_HOUR, day_interval

TREND_DAYS = 30
TOP_USERS = 10
State = Literal["unbilled", "draft", "closed"]


@dataclass(frozen=True, slots=True)
class Hour:
    """One hour of the day; `start` is in the billing time zone."""

    start: datetime
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class TrendDay:
    """Tokens of a day, and its bill; None when it has no bill in the report's currency."""

    day: date
    total_tokens: int
    amount_minor: int | None


@dataclass(frozen=True, slots=True)
class Correction:
    """What this bill adds to, or takes from, the closed bill of an earlier day for one user and project."""

    usage_day: date
    user_id: str
    project: str
    quantity_tokens: int
    unrated_tokens: int
    amount_minor: int | None


@dataclass(frozen=True, slots=True)
class OpenDay:
    """An earlier day with usage that is on no closed bill yet."""

    day: date
    total_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DayReport:
    """A billing day as finance reads it; of one user when `user` is given.

    Tokens are those of the hourly aggregates, amounts those of the bill of that day. The parts by
    `users`, `projects`, `departments` and `models` each sum to `total`. `currency` is the bill's, or of
    the last bill before it. `set_aside_events` counts journal lines that are no valid events: they are on
    no bill, and nobody's, so a user's report says None.
    """

    day: date
    time_zone: str
    user: str | None
    state: State
    early: bool
    closed_at: datetime | None
    currency: str | None
    total: Totals
    before: Totals | None
    driver: Driver | None
    hours: tuple[Hour, ...]
    trend: tuple[TrendDay, ...]
    users: tuple[Part, ...]
    projects: tuple[Part, ...]
    departments: tuple[Part, ...]
    models: tuple[Part, ...]
    corrections: tuple[Correction, ...]
    open_days: tuple[OpenDay, ...]
    set_aside_events: int | None

    @property
    def is_empty(self) -> bool:
        """Neither usage nor corrections."""
        return not self.total.requests and not self.corrections

    @property
    def token_change(self) -> Change | None:
        """Against the day before; None when that had nothing."""
        return token_change(self.before, self.total) if self.before else None

    @property
    def cost_change(self) -> Change | None:
        """Against the bill of the day before; None when there is none to compare with."""
        return cost_change(self.before, self.total) if self.before else None

    @property
    def top_users(self) -> tuple[Part, ...]:
        """The ten with the most tokens."""
        return self.users[:TOP_USERS]

    @property
    def other_users(self) -> tuple[Part, ...]:
        """The rest."""
        return self.users[TOP_USERS:]

    @property
    def unrated_models(self) -> tuple[Part, ...]:
        """Model versions whose tokens of this day have no price."""
        return tuple(part for part in self.models if part.totals.unrated_tokens)


def day_report(connection: Connection, day: date, zone: tzinfo, user: str | None = None) -> DayReport:
    """Report a billing day, whatever its state, in one consistent view of the ledger.

    Args:
        connection: inside `billing.ledger.reading` or `writing`.
        zone: the billing time zone.
        user: restrict everything to this user.
    Raises: LedgerError: amounts of the day are in several currencies (code currencies_mixed).
    """
    bill = connection.execute(sa.select(bill_days).where(bill_days.c.day == day)).one_or_none()
    currency = _currency(connection, day)
    nothing = Totals(amount_minor=0 if currency else None, currency=currency)
    total = day_total(connection, day, user) or nothing
    before = day_total(connection, day - ONE_DAY, user)
    parts: dict[Dimension, tuple[Part, ...]] = {
        dimension: day_parts(connection, day, dimension, user)
        for dimension in ("user", "project", "department", "model")
    }
    return DayReport(
        day=day,
        time_zone=str(zone),
        user=user,
        state=bill.state if bill else "unbilled",
        early=bool(bill and bill.early),
        closed_at=bill.closed_at if bill else None,
        currency=currency,
        total=total,
        before=before,
        driver=_driver(connection, day, user, before, total, parts) if before else None,
        hours=_hours(connection, day, zone, user),
        trend=_trend(connection, day, user, currency),
        users=parts["user"],
        projects=parts["project"],
        departments=parts["department"],
        models=parts["model"],
        corrections=_corrections(connection, day, user),
        open_days=_open_days(connection, day, user),
        set_aside_events=_set_aside(connection) if user is None else None,
    )


def _currency(connection: Connection, day: date) -> str | None:
    rated = sa.select(bill_lines.c.currency).where(
        bill_lines.c.day <= day, bill_lines.c.currency.is_not(None)
    )
    return connection.scalar(rated.order_by(bill_lines.c.day.desc()).limit(1))


def _driver(
    connection: Connection,
    day: date,
    user: str | None,
    before: Totals,
    total: Totals,
    parts: dict[Dimension, tuple[Part, ...]],
) -> Driver | None:
    narrow_to_wide: list[Dimension] = ["user", "project", "model"] if user is None else ["project", "model"]
    return main_driver(
        before,
        total,
        {dimension: day_parts(connection, day - ONE_DAY, dimension, user) for dimension in narrow_to_wide},
        {dimension: parts[dimension] for dimension in narrow_to_wide},
    )


def _hours(connection: Connection, day: date, zone: tzinfo, user: str | None) -> tuple[Hour, ...]:
    """Every hour of the day, counted from its start, with or without usage."""
    interval = day_interval(day, zone)
    count = -((interval.start - interval.end) // ONE_HOUR)  # the last one may be shorter
    found = {interval.start + number * ONE_HOUR: (0, 0, 0) for number in range(count)}
    names = ("requests", "prompt_tokens", "completion_tokens")
    sums = [whole(sa.func.sum(usage_hours.c[name])) for name in names]
    query = sa.select(usage_hours.c.hour, *sums).where(usage_hours.c.day == day).group_by(usage_hours.c.hour)
    for hour, *counts in connection.execute(of_user(query, usage_hours, user)):
        found[hour] = tuple(counts)
    return tuple(Hour(start.astimezone(zone), *found[start]) for start in sorted(found))


def _trend(connection: Connection, day: date, user: str | None, currency: str | None) -> tuple[TrendDay, ...]:
    """The last days up to this one, from the first that has usage or a bill, without gaps."""
    first = day - timedelta(days=TREND_DAYS - 1)
    used = sa.select(
        usage_hours.c.day,
        whole(sa.func.sum(usage_hours.c.prompt_tokens + usage_hours.c.completion_tokens)),
    ).where(usage_hours.c.day.between(first, day))
    tokens = _by_day(connection, of_user(used, usage_hours, user).group_by(usage_hours.c.day))
    billed = sa.select(
        bill_lines.c.day, sa.cast(sa.func.sum(bill_lines.c.amount_minor), sa.BigInteger)
    ).where(bill_lines.c.day.between(first, day), bill_lines.c.currency == currency)
    amounts = _by_day(connection, of_user(billed, bill_lines, user).group_by(bill_lines.c.day))
    start = min([*tokens, *amounts, day])
    days = [start + number * ONE_DAY for number in range((day - start).days + 1)]
    return tuple(TrendDay(each, tokens.get(each, 0), amounts.get(each)) for each in days)


def _by_day(connection: Connection, query: sa.Select[Any]) -> dict[date, int]:
    return dict(connection.execute(query).all())


def _corrections(connection: Connection, day: date, user: str | None) -> tuple[Correction, ...]:
    line = bill_lines.c
    query = (
        sa.select(
            line.usage_day,
            line.user_id,
            line.project,
            whole(sa.func.sum(line.quantity_tokens)),
            whole(sa.func.sum(sa.case((line.price_id == UNRATED, line.quantity_tokens), else_=0))),
            sa.cast(sa.func.sum(line.amount_minor), sa.BigInteger),
        )
        .where(line.day == day, line.usage_day < day)
        .group_by(line.usage_day, line.user_id, line.project)
    )
    rows = connection.execute(of_user(query, bill_lines, user))
    return tuple(sorted((Correction(*row) for row in rows), key=_when_and_whose))


def _when_and_whose(correction: Correction) -> tuple[date, str, str]:
    return correction.usage_day, correction.user_id, correction.project


def _open_days(connection: Connection, day: date, user: str | None) -> tuple[OpenDay, ...]:
    closed = sa.select(bill_days.c.day).where(bill_days.c.state == "closed")
    query = sa.select(
        usage_hours.c.day,
        whole(sa.func.sum(usage_hours.c.prompt_tokens + usage_hours.c.completion_tokens)),
    ).where(usage_hours.c.day < day, usage_hours.c.day.not_in(closed))
    grouped = of_user(query, usage_hours, user).group_by(usage_hours.c.day)
    return tuple(OpenDay(*row) for row in connection.execute(grouped.order_by(usage_hours.c.day)))


def _set_aside(connection: Connection) -> int:
    return connection.execute(sa.select(sa.func.count()).select_from(set_aside)).scalar_one()
