"""Hourly aggregates: kept up with every event stored, and rebuilt from the events on demand."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import date, tzinfo
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing.ledger import insert
from billing.tables import COUNTS, SUBJECT, usage_events, usage_hours
from tallybook.calendar import billing_hour

_KEY = ("day", "hour", *SUBJECT)
_SUMS = ("requests", *COUNTS)


def add_to_hours(connection: Connection, events: Iterable[Mapping[Any, Any]], zone: tzinfo) -> None:
    """Add newly stored events (rows of `usage_events`) to their hours, in the caller's transaction."""
    sums: dict[tuple[Any, ...], list[int]] = defaultdict(lambda: [0] * len(_SUMS))
    for event in events:
        key = (event["day"], billing_hour(event["time"], zone), *(event[name] for name in SUBJECT))
        total = sums[key]
        total[0] += 1
        for position, name in enumerate(COUNTS, 1):
            total[position] += event[name]
    if not sums:
        return
    statement = insert(connection, usage_hours)
    added = {name: usage_hours.c[name] + statement.excluded[name] for name in _SUMS}
    # In the order of their keys, so that two ingesters never wait for each other in a circle.
    rows = [dict(zip((*_KEY, *_SUMS), (*key, *sums[key]), strict=True)) for key in sorted(sums)]
    connection.execute(statement.on_conflict_do_update(index_elements=list(_KEY), set_=added), rows)


def rebuild_day(connection: Connection, day: date, zone: tzinfo) -> None:
    """Make the hours of one day anew from its events: the same numbers, or the day was wrong before."""
    connection.execute(usage_hours.delete().where(usage_hours.c.day == day))
    columns = [usage_events.c[name] for name in ("day", "time", *SUBJECT, *COUNTS)]
    query = sa.select(*columns).where(usage_events.c.day == day)
    for part in connection.execute(query, execution_options={"yield_per": 5000}).partitions():
        add_to_hours(connection, (row._mapping for row in part), zone)


def day_sums(table: sa.Table, day: date) -> sa.Select[Any]:
    """Token sums of one day by subject, out of the events or out of the hours."""
    requests = sa.func.count() if table is usage_events else sa.func.sum(table.c.requests)
    return (
        sa.select(
            *[table.c[name] for name in SUBJECT],
            whole(requests).label("requests"),
            *[whole(sa.func.sum(table.c[name])).label(name) for name in COUNTS],
        )
        .where(table.c.day == day)
        .group_by(*[table.c[name] for name in SUBJECT])
    )


def whole(total: sa.ColumnElement[Any]) -> sa.ColumnElement[int]:
    """A sum of whole numbers as one: PostgreSQL makes it a numeric, and nothing summed makes null."""
    return sa.cast(sa.func.coalesce(total, 0), sa.BigInteger)
