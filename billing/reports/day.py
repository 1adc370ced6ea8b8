"""The report of one billing day: pure data, summed in the ledger, for charts, mails and pages."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime, tzinfo
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing.aggregates import whole
from billing.costs.file import CostList
from billing.costs.unit_costs import UnitCost, daily_unit_costs
from billing.rating import UNRATED
from billing.reports.driver import Change, Driver, cost_change, main_driver, token_change
from billing.reports.latency import Latency, day_latency
from billing.reports.trend import Trend, TrendDay
from billing.selection import EVERYBODY, Owners, Selection, Whose
from billing.simulation.mark import is_simulated
from billing.tables import bill_days, bill_lines, event_batches, set_aside, usage_hours
from billing.totals import Dimension, Part, Totals, by_owner, day_parts, day_totals
from tallybook.calendar import ONE_DAY, ONE_HOUR, day_interval

TOP_USERS = 10
DIMENSIONS: tuple[Dimension, ...] = ("user", "project", "department", "model")
DRIVERS: tuple[Dimension, ...] = ("user", "project", "model")
_TOKENS = ("prompt_tokens", "completion_tokens")
State = Literal["unbilled", "draft", "closed"]


@dataclass(frozen=True, slots=True)
class Hour:
    """One hour of the day; `start` is in the billing time zone."""

    start: datetime
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


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
    project: str | None = None
    simulated: bool = False
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
    latency: tuple[Latency, ...] = ()
    unit_costs: tuple[UnitCost, ...] = ()

    @property
    def owner(self) -> str | None:
        """Whose report it is; None: everybody's."""
        return self.user if self.user is not None else self.project

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


def day_report(
    connection: Connection,
    day: date,
    zone: tzinfo,
    user: str | None = None,
    project: str | None = None,
    costs: CostList | None = None,
) -> DayReport:
    """Report a billing day, whatever its state, in one consistent view of the ledger.

    Args:
        connection: inside `billing.ledger.reading` or `writing`.
        zone: the billing time zone.
        user, project: restrict everything to this user or project.
        costs: what machines cost, for the unit costs of everybody's report.
    Raises: LedgerError: amounts of the day are in several currencies (code currencies_mixed).
    """
    whose = Selection(user, project)
    report = _Day(connection, day, zone, whose).report("", user, project)
    if whose == EVERYBODY:
        report = replace(
            report,
            set_aside_events=_set_aside(connection),
            latency=day_latency(connection, day, zone),
            unit_costs=daily_unit_costs(connection, [each.day for each in report.trend], zone, costs),
        )
    return report


def owner_reports(connection: Connection, day: date, zone: tzinfo, owners: Owners) -> Iterator[DayReport]:
    """The same for many users or projects, read together; who has nothing has an empty report."""
    read = _Day(connection, day, zone, owners)
    for name in owners.names:
        user, project = (name, None) if owners.kind == "user" else (None, name)
        yield read.report(name, user, project)


class _Day:
    """What a day's reports are made of, read at once for all owners."""

    def __init__(self, connection: Connection, day: date, zone: tzinfo, whose: Whose) -> None:
        self.day, self.zone = day, zone
        self.bill = connection.execute(sa.select(bill_days).where(bill_days.c.day == day)).one_or_none()
        self.simulated = is_simulated(connection)
        self.currency = _currency(connection, day)
        self.totals = day_totals(connection, day, whose)
        self.before = day_totals(connection, day - ONE_DAY, whose)
        self.parts = {name: day_parts(connection, day, name, whose) for name in DIMENSIONS}
        self.parts_before = {name: day_parts(connection, day - ONE_DAY, name, whose) for name in DRIVERS}
        self.hours = _hours(connection, day, whose)
        self.trend = Trend.read(connection, day, whose, self.currency)
        self.corrections = _corrections(connection, day, whose)
        self.open_days = _open_days(connection, day, whose)

    def report(self, owner: str, user: str | None, project: str | None) -> DayReport:
        """One owner's."""
        nothing = Totals(amount_minor=0 if self.currency else None, currency=self.currency)
        total, before = self.totals.get(owner, nothing), self.before.get(owner)
        parts = {name: found.get(owner, ()) for name, found in self.parts.items()}
        # From narrow to wide; an owner is not the driver of their own change.
        narrow = [n for n in DRIVERS if not (user is not None and n == "user")]
        narrow = [n for n in narrow if not (project is not None and n == "project")]
        return DayReport(
            day=self.day,
            time_zone=str(self.zone),
            user=user,
            project=project,
            simulated=self.simulated,
            state=self.bill.state if self.bill else "unbilled",
            early=bool(self.bill and self.bill.early),
            closed_at=self.bill.closed_at if self.bill else None,
            currency=self.currency,
            total=total,
            before=before,
            driver=main_driver(
                before,
                total,
                {name: self.parts_before[name].get(owner, ()) for name in narrow},
                {name: parts[name] for name in narrow},
            )
            if before
            else None,
            hours=_every_hour(self.day, self.zone, self.hours.get(owner, {})),
            trend=self.trend.of(owner),
            users=parts["user"],
            projects=parts["project"],
            departments=parts["department"],
            models=parts["model"],
            corrections=tuple(sorted(self.corrections.get(owner, ()), key=_when_and_whose)),
            open_days=tuple(self.open_days.get(owner, ())),
            set_aside_events=None,
        )


def _currency(connection: Connection, day: date) -> str | None:
    rated = sa.select(bill_lines.c.currency).where(
        bill_lines.c.day <= day, bill_lines.c.currency.is_not(None)
    )
    return connection.scalar(rated.order_by(bill_lines.c.day.desc()).limit(1))


def _hours(
    connection: Connection, day: date, whose: Whose
) -> dict[str, dict[datetime, tuple[int, int, int]]]:
    """Requests, prompt and completion tokens of the hours that have some, by owner."""
    sums = [whole(sa.func.sum(usage_hours.c[name])) for name in ("requests", *_TOKENS)]
    owner = whose.owner(usage_hours)
    query = sa.select(owner, usage_hours.c.hour, *sums).where(usage_hours.c.day == day)
    query = query.where(*whose.where(usage_hours)).group_by(*by_owner(owner), usage_hours.c.hour)
    found: dict[str, dict[datetime, tuple[int, int, int]]] = defaultdict(dict)
    for name, hour, *counts in connection.execute(query):
        found[name][hour] = tuple(counts)
    return found


def _every_hour(day: date, zone: tzinfo, used: Mapping[datetime, tuple[int, int, int]]) -> tuple[Hour, ...]:
    """Every hour of the day, counted from its start, with or without usage."""
    interval = day_interval(day, zone)
    count = -((interval.start - interval.end) // ONE_HOUR)  # the last one may be shorter
    found = {interval.start + number * ONE_HOUR: (0, 0, 0) for number in range(count)} | dict(used)
    return tuple(Hour(start.astimezone(zone), *found[start]) for start in sorted(found))


def _corrections(connection: Connection, day: date, whose: Whose) -> dict[str, list[Correction]]:
    line = bill_lines.c
    owner = whose.owner(bill_lines)
    query = (
        sa.select(
            owner,
            line.usage_day,
            line.user_id,
            line.project,
            whole(sa.func.sum(line.quantity_tokens)),
            whole(sa.func.sum(sa.case((line.price_id == UNRATED, line.quantity_tokens), else_=0))),
            sa.cast(sa.func.sum(line.amount_minor), sa.BigInteger),
        )
        .where(line.day == day, line.usage_day < day, *whose.where(bill_lines))
        .group_by(*by_owner(owner), line.usage_day, line.user_id, line.project)
    )
    found = defaultdict(list)
    for name, *row in connection.execute(query):
        found[name].append(Correction(*row))
    return found


def _when_and_whose(correction: Correction) -> tuple[date, str, str]:
    return correction.usage_day, correction.user_id, correction.project


def _open_days(connection: Connection, day: date, whose: Whose) -> dict[str, list[OpenDay]]:
    closed = sa.select(bill_days.c.day).where(bill_days.c.state == "closed")
    used = sa.select(event_batches.c.day).where(event_batches.c.day < day, event_batches.c.day.not_in(closed))
    still_open = list(connection.scalars(used.distinct()))  # few; of the hours there are many
    owner = whose.owner(usage_hours)
    query = (
        sa.select(owner, usage_hours.c.day, whole(sa.func.sum(sum(usage_hours.c[name] for name in _TOKENS))))
        .where(usage_hours.c.day.in_(still_open), *whose.where(usage_hours))
        .group_by(*by_owner(owner), usage_hours.c.day)
        .order_by(usage_hours.c.day)
    )
    found = defaultdict(list)
    for name, *row in connection.execute(query) if still_open else ():
        found[name].append(OpenDay(*row))
    return found


def _set_aside(connection: Connection) -> int:
    return connection.execute(sa.select(sa.func.count()).select_from(set_aside)).scalar_one()
