"""What every user, project, department and model used on each day, kept to read weeks of it at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from hashlib import sha256
from ipaddress import ip_address, ip_network
from typing import Any, Literal

import numpy as np
import orjson
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.engine import Connection

from billing.aggregates import events_are_dropped, roll_up, whole
from billing.alerts.tables import network_days, summed_days, usage_days
from billing.bulk import insert_rows
from billing.errors import AuditError
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
_LOCK_KEY = 7_411_402_562  # who holds it is the only one to sum
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
    there = _marks(connection, event_batches.c.day.between(first, last))
    kept = _kept_marks(connection, summed_days.c.day.between(first, last))
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


def networks_sha256(connection: Connection, day: date) -> str:
    """A digest of the networks that are kept of a day."""
    network = network_days.c
    query = sa.select(network.user_id, network.network, network.requests).where(network.day == day)
    return sha256(orjson.dumps(sorted(map(tuple, connection.execute(query))))).hexdigest()


def prove_day_sums(connection: Connection, dropped: Mapping[date, Mapping[str, Any]]) -> None:
    """Prove the sums of every day: those of users, projects, departments and models by the hours, those of
    networks by the events.

    A day that got events since it was summed is summed anew when it is looked at, and is left out.

    Args:
        dropped: the body of the chain's last record of dropping events of a day, which has its networks.
    Raises: AuditError: a row was altered, removed or put in (code day_sums_altered), named by day.
    """
    there, kept = _marks(connection), _kept_marks(connection)
    query = sa.select(event_batches.c.day).where(~event_batches.c.rolled_up).distinct()
    waiting = set(connection.scalars(query))
    for table in (usage_days, network_days):
        for day in sorted(set(connection.scalars(sa.select(table.c.day).distinct())) - kept.keys()):
            raise _altered(f"{table.name} has sums of {day}, which was not summed")
    for day, mark in sorted(kept.items()):
        now = there.get(day, (0, 0))
        if mark[0] > now[0] or mark[1] > now[1]:
            raise _altered(f"{day} was summed up to batch {mark[1]}, and has {now[0]} up to {now[1]}")
        if mark == now and day not in waiting:
            _prove_day(connection, day)
    for day, body in sorted(dropped.items()):
        if "networks_sha256" in body and networks_sha256(connection, day) != body["networks_sha256"]:
            raise _altered(f"{day}: its networks are not what they were when its events were dropped")


def network_of(address: str) -> str:
    """The network that an address is counted in: a /24, or a /48 of IPv6; what is none stays as it is."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    return str(ip_network((parsed, _PREFIXES[parsed.version]), strict=False))


def _marks(connection: Connection, *where: sa.ColumnElement[bool]) -> dict[date, tuple[int, int]]:
    """How many batches the hours of each day have, and the number of the last."""
    batch = event_batches.c
    query = sa.select(batch.day, sa.func.count(), sa.func.max(batch.id)).where(batch.rolled_up, *where)
    return {day: (count, last) for day, count, last in connection.execute(query.group_by(batch.day))}


def _kept_marks(connection: Connection, *where: sa.ColumnElement[bool]) -> dict[date, tuple[int, int]]:
    """The same as it was when the days were summed."""
    rows = connection.execute(sa.select(summed_days).where(*where))
    return {row.day: (row.batches, row.last_batch_id) for row in rows}


def _sums(kind: Kind, day: date) -> sa.Select[Any]:
    """Rows of `usage_days`."""
    column = KINDS[kind]
    tokens = whole(sa.func.sum(usage_hours.c.prompt_tokens + usage_hours.c.completion_tokens))
    requests = whole(sa.func.sum(usage_hours.c.requests))
    sums = sa.select(
        usage_hours.c.day, sa.literal(kind).label("kind"), column.label("name"),
        requests.label("requests"), tokens.label("tokens"),
    )  # fmt: skip
    return sums.where(usage_hours.c.day == day).group_by(usage_hours.c.day, column)


def _prove_day(connection: Connection, day: date) -> None:
    kept = usage_days.c
    told = sa.union_all(
        *[_sums(kind, day) for kind in KINDS],
        sa.select(kept.day, kept.kind, kept.name, -kept.requests, -kept.tokens).where(kept.day == day),
    ).subquery()
    differs = sa.or_(*[sa.func.sum(told.c[name]) != 0 for name in ("requests", "tokens")])
    query = sa.select(told.c.kind, told.c.name).group_by(told.c.kind, told.c.name).having(differs)
    for kind, name in connection.execute(query.order_by(told.c.kind, told.c.name).limit(1)):
        raise _altered(f"{day}, {kind} {name}: its sum of the day is not that of its hours")
    if events_are_dropped(connection, day):
        return
    network = network_days.c
    rows = connection.execute(
        sa.select(network.user_id, network.network, network.requests).where(network.day == day)
    )
    found = {(user, name): count for user, name, count in rows}
    expected = {(user, name): count for _, user, name, count in _networks(connection, day)}
    for user, name in sorted(found.keys() | expected.keys()):
        if found.get((user, name)) != expected.get((user, name)):
            raise _altered(f"{day}, user {user}: its requests from {name} are not those of its events")


def _altered(what: str) -> AuditError:
    return AuditError("day_sums_altered", what)


def _sum_day(connection: Connection, day: date) -> None:
    connection.execute(usage_days.delete().where(usage_days.c.day == day))
    for kind in KINDS:
        connection.execute(
            usage_days.insert().from_select(["day", "kind", "name", "requests", "tokens"], _sums(kind, day))
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
