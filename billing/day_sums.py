"""What every user, project, department and model used on each day, kept to read weeks of it at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from ipaddress import ip_address, ip_network
from typing import Any, Literal

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.engine import Connection

from billing.aggregates import events_are_dropped, roll_up, whole
from billing.alerts.tables import network_days, summed_days, usage_days
from billing.bulk import insert_rows
from billing.ledger import insert
from billing.tables import event_batches, usage_events, usage_hours
from tallybook.calendar import ONE_DAY

Kind = Literal["user", "project", "department", "model"]
KINDS: dict[Kind, sa.Column[Any]] = {
    "user": usage_hours.c.user_id,
    "project": usage_hours.c.project,
    "department": usage_hours.c.department,
    "model": usage_hours.c.model,
}
_LOCK_KEY = 7_411_402_558  # who holds it is the only one to sum
_PREFIXES = {4: 24, 6: 48}  # of a network by the version of its addresses


@dataclass(frozen=True)
class History:
    """Tokens of each subject (a row) on each day (a column), and the days."""

    names: list[str]
    days: list[date]
    tokens: NDArray[np.int64]


def sum_days(connection: Connection, first: date, last: date) -> list[date]:
    """Bring the sums of these days up to date, in the caller's transaction; which days had changed.

    What was stored is rolled up first. A day is summed anew only when events came for it, so that the next
    look at the same weeks costs almost nothing.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK_KEY)))
    roll_up(connection)
    batches = event_batches.c
    there = {
        row.day: (row.batches, row.last)
        for row in connection.execute(
            sa.select(batches.day, sa.func.count().label("batches"), sa.func.max(batches.id).label("last"))
            .where(batches.day.between(first, last))
            .group_by(batches.day)
        )
    }
    kept = {
        row.day: (row.batches, row.last_batch_id)
        for row in connection.execute(sa.select(summed_days).where(summed_days.c.day.between(first, last)))
    }
    changed = sorted(day for day, mark in there.items() if kept.get(day) != mark)
    for day in changed:
        _sum_day(connection, day)
        mark = {"batches": there[day][0], "last_batch_id": there[day][1]}
        statement = insert(connection, summed_days).values(day=day, **mark)
        connection.execute(statement.on_conflict_do_update(index_elements=["day"], set_=mark))
    return changed


def history(connection: Connection, kind: Kind, first: date, last: date) -> History:
    """The tokens of everyone of a kind who used any on these days; `sum_days` must have been called."""
    days = [first + number * ONE_DAY for number in range((last - first).days + 1)]
    place = {day: number for number, day in enumerate(days)}
    query = sa.select(usage_days.c.name, usage_days.c.day, usage_days.c.tokens).where(
        usage_days.c.kind == kind, usage_days.c.day.between(first, last)
    )
    rows = connection.execute(query).all()
    names = sorted({row.name for row in rows})
    row_of = {name: number for number, name in enumerate(names)}
    tokens = np.zeros((len(names), len(days)), np.int64)
    for name, day, count in rows:
        tokens[row_of[name], place[day]] = count
    return History(names, days, tokens)


def network_of(address: str) -> str:
    """The network that an address is counted in: a /24, or a /48 of IPv6; what is none stays as it is."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    return str(ip_network((parsed, _PREFIXES[parsed.version]), strict=False))


def _sum_day(connection: Connection, day: date) -> None:
    connection.execute(usage_days.delete().where(usage_days.c.day == day))
    tokens = whole(sa.func.sum(usage_hours.c.prompt_tokens + usage_hours.c.completion_tokens))
    requests = whole(sa.func.sum(usage_hours.c.requests))
    for kind, column in KINDS.items():
        sums = sa.select(usage_hours.c.day, sa.literal(kind), column, requests, tokens)
        sums = sums.where(usage_hours.c.day == day).group_by(usage_hours.c.day, column)
        connection.execute(
            usage_days.insert().from_select(["day", "kind", "name", "requests", "tokens"], sums)
        )
    if not events_are_dropped(connection, day):
        connection.execute(network_days.delete().where(network_days.c.day == day))
        insert_rows(
            connection, network_days, ("day", "user_id", "network", "requests"), _networks(connection, day)
        )


def _networks(connection: Connection, day: date) -> Sequence[tuple[str, str, str, int]]:
    event = usage_events.c
    query = sa.select(event.user_id, event.client_ip, sa.func.count()).where(event.day == day)
    found: dict[tuple[str, str], int] = {}
    for user, address, count in connection.execute(query.group_by(event.user_id, event.client_ip)):
        key = (user, network_of(address))
        found[key] = found.get(key, 0) + count
    return [(day.isoformat(), user, network, count) for (user, network), count in sorted(found.items())]
