"""Hourly aggregates: rolled up from batches of events, and rebuilt from the events on demand."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from hashlib import sha256
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Connection, Engine

from billing.alerts.tables import network_days, summed_days, usage_days
from billing.bulk import stream
from billing.errors import ClosureError, LedgerError
from billing.ledger import insert, share_ledger, writing
from billing.tables import COUNTS, RATED_BY, SUBJECT, event_batches, usage_events, usage_hours

KEY = (*SUBJECT, *RATED_BY)  # what a bill tells apart
_KEY = ("day", "hour", *KEY, "status")
_SUMS = ("requests", *COUNTS)
_SIDES = ("events", "hours")
# Who rolls up a day holds the lock of this class with the day's number.
_ROLL_UP_LOCK = 7_411
_day_usage = sa.Table(
    "day_usage",
    sa.MetaData(),
    *[sa.Column(name, usage_hours.c[name].type) for name in (*KEY, *_SUMS)],
    prefixes=["TEMPORARY"],
    postgresql_on_commit="DROP",
)


def roll_up(connection: Connection) -> int:
    """Add the batches that the hours don't have yet, in the caller's transaction; how many there were.

    The database sums them itself, so that the hours cost little beside storing the events.
    """
    waiting = sa.select(event_batches.c.day).where(~event_batches.c.rolled_up).distinct()
    return sum(_roll_up_day(connection, day) for day in sorted(connection.scalars(waiting)))


def roll_up_now(ledger: Engine) -> None:
    """The same in a transaction of its own, beside others that ingest."""
    with writing(ledger) as connection:
        share_ledger(connection)
        roll_up(connection)


def rebuild_day(connection: Connection, day: date) -> int:
    """Make the hours of one day anew from its events: the same numbers, or the day was wrong before.

    Its sums by day are forgotten, and made anew when they are looked at.

    Returns: how many rows of hours there are.
    Raises: LedgerError: retention has dropped events of that day (code events_dropped).
    """
    if events_are_dropped(connection, day):
        raise LedgerError("events_dropped", f"{day}: its events were dropped; its hours can't be made anew")
    _lock_day(connection, day)
    connection.execute(usage_hours.delete().where(usage_hours.c.day == day))
    connection.execute(summed_days.delete().where(summed_days.c.day == day))
    connection.execute(usage_days.delete().where(usage_days.c.day == day))
    connection.execute(network_days.delete().where(network_days.c.day == day))
    connection.execute(event_batches.update().where(event_batches.c.day == day).values(rolled_up=False))
    _roll_up_day(connection, day)
    count = sa.select(sa.func.count()).select_from(usage_hours).where(usage_hours.c.day == day)
    return connection.execute(count).scalar_one()


def sum_hours(connection: Connection, day: date) -> sa.Table:
    """The sums of a day's hours by KEY, in a table that is there until the caller's transaction ends."""
    connection.exec_driver_sql(f"DROP TABLE IF EXISTS {_day_usage.name}")
    _day_usage.create(connection)
    connection.execute(_day_usage.insert().from_select([*KEY, *_SUMS], day_sums(usage_hours, day)))
    return _day_usage


def events_digest(connection: Connection, day: date) -> int | None:
    """A digest of the sums by KEY of a day's events that are rolled up; None: events of it were dropped.

    On one core: for a connection beside another that is at work.
    """
    if events_are_dropped(connection, day):
        return None
    if connection.dialect.name == "postgresql":  # left alone, it would take every core where groups are few
        connection.exec_driver_sql("SET LOCAL max_parallel_workers_per_gather = 0")
    return _digest(connection, day_sums(usage_events, day).where(*_rolled_up(connection, day)))


def hours_digest(connection: Connection) -> int:
    """The same of what `sum_hours` has put into its table."""
    return _digest(connection, sa.select(_day_usage))


def _digest(connection: Connection, rows: sa.Select[Any]) -> int:
    """The sum of their hashes: it does not depend on their order, nor does the memory on their number."""
    hashes = (sha256(orjson.dumps(row)).digest() for row in stream(connection, rows))
    return sum(int.from_bytes(each, "big") for each in hashes) % 2**256


def day_sums(table: sa.Table, day: date) -> sa.Select[Any]:
    """Token sums of one day by subject, latency class and context band, from the events or the hours."""
    requests = sa.func.count() if table is usage_events else sa.func.sum(table.c.requests)
    keys = [table.c[name] for name in KEY]
    return (
        sa.select(
            *keys,
            whole(requests).label("requests"),
            *[whole(sa.func.sum(table.c[name])).label(name) for name in COUNTS],
        )
        .where(table.c.day == day)
        .group_by(*keys)
    )


def prove_hours(connection: Connection, day: date) -> None:
    """Prove that a day's hours are the sums of its events; the database compares them, on every core.

    Events that came late and are not rolled up yet are left out.
    A day whose events were dropped had this proven before; its hours are compared with its batches in all.
    Raises: ClosureError: they differ; the first difference is named by day and subject.
    """
    if events_are_dropped(connection, day):
        _prove_totals(connection, day)
        return
    _use_every_core(connection)
    events = _one_side(usage_events, "events", day, *_rolled_up(connection, day))
    both = events.union_all(_one_side(usage_hours, "hours", day)).subquery()
    sums = [both.c[f"{kind}_{name}"] for kind in _SIDES for name in _SUMS]
    subject = [both.c[name] for name in KEY]
    one_side, other_side = ([sa.func.sum(both.c[f"{kind}_{name}"]) for name in _SUMS] for kind in _SIDES)
    differs = sa.or_(*(one != other for one, other in zip(one_side, other_side, strict=True)))
    query = sa.select(*subject, *(whole(sa.func.sum(each)).label(each.name) for each in sums)).group_by(
        *subject
    )
    for row in connection.execute(query.having(differs).order_by(*subject).limit(1)).mappings():
        told, kept = (
            ", ".join(f"{row[f'{kind}_{name}']} {name.replace('_', ' ')}" for name in _SUMS)
            for kind in _SIDES
        )
        raise ClosureError(
            "closure_mismatch",
            f"{day}, user {row['user_id']}, project {row['project']}, {row['model']} {row['model_version']}: "
            f"the events are {told}; the hourly aggregates are {kept}",
        )


def prove_each_hour(connection: Connection, day: date) -> None:
    """Prove a day's hours one by one, with their status: an audit's question, as no bill depends on it.

    Events that are not rolled up yet are left out; of a day whose events were dropped nothing is asked.
    Raises: ClosureError: the first difference, named by day, subject, hour and status.
    """
    if events_are_dropped(connection, day):
        return
    told = _hourly_sums().where(usage_events.c.day == day, *_rolled_up(connection, day))
    kept = sa.select(*[usage_hours.c[name] for name in _KEY], *[-usage_hours.c[name] for name in _SUMS])
    both = told.union_all(kept.where(usage_hours.c.day == day)).subquery()
    key = [both.c[name] for name in _KEY]
    left = sa.or_(*[sa.func.sum(column) != 0 for column in list(both.c)[len(_KEY) :]])
    for row in connection.execute(sa.select(*key).group_by(*key).having(left).order_by(*key).limit(1)):
        raise ClosureError(
            "closure_mismatch",
            f"{day}, user {row.user_id}, project {row.project}, {row.model} {row.model_version}: "
            f"its hour {row.hour:%Y-%m-%d %H:%M} UTC with status {row.status}, is not what its events are",
        )


def hours_sha256(connection: Connection, day: date, *, dropped: bool = False) -> str:
    """A digest of a day's hours, less the events that are there; `dropped`: as if none were."""
    sums = [usage_hours.c[name] for name in _SUMS]
    rows = sa.select(*[usage_hours.c[name] for name in _KEY], *sums).where(usage_hours.c.day == day)
    if not dropped:
        there = _hourly_sums().where(usage_events.c.day == day, *_rolled_up(connection, day)).subquery()
        less = sa.select(*[there.c[name] for name in _KEY], *[-there.c[name] for name in _SUMS])
        both = rows.union_all(less).subquery()
        key, left = [both.c[name] for name in _KEY], [whole(sa.func.sum(both.c[name])) for name in _SUMS]
        rows = sa.select(*key, *left).group_by(*key).having(sa.or_(*[sum_ != 0 for sum_ in left]))
    leaves = (
        sha256(orjson.dumps(tuple(row))).digest()
        for row in connection.execute(rows, execution_options={"yield_per": 1000})
    )
    return sha256(b"".join(sorted(leaves))).hexdigest()


def prove_dropped_hours(connection: Connection, day: date, dropped: Mapping[str, Any]) -> None:
    """Prove that a day's hours, less events that came since, are those that the chain has of its last drop.

    Args:
        dropped: the body of the chain's record of it.
    Raises: ClosureError: they differ; named by the day.
    """
    if hours_sha256(connection, day) != dropped["hours_sha256"]:
        raise ClosureError(
            "closure_mismatch", f"{day}: its hours are not what they were when its events were dropped"
        )


def _use_every_core(connection: Connection) -> None:
    """Let PostgreSQL sum in parallel until the transaction ends.

    Left alone it does not where groups are many: it takes them for not worth putting together.
    """
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET LOCAL parallel_setup_cost = 0")
        connection.exec_driver_sql("SET LOCAL parallel_tuple_cost = 0")


def _rolled_up(connection: Connection, day: date) -> list[sa.ColumnElement[bool]]:
    """What leaves out the events that the hours don't have yet; nothing where there are none, as mostly."""
    waiting = _waiting(day)
    if connection.scalar(waiting.limit(1)) is None:
        return []
    return [usage_events.c.batch_id.not_in(waiting)]


def _waiting(day: date) -> sa.Select[Any]:
    """The batches of a day that its hours don't have yet."""
    return sa.select(event_batches.c.id).where(event_batches.c.day == day, ~event_batches.c.rolled_up)


def _one_side(table: sa.Table, side: str, day: date, *where: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """A day's sums in the columns of this side, beside zeros for the other one.

    Put together and summed again they are compared without a join, which SQLite would do row by row.
    """
    sums = day_sums(table, day).where(*where).subquery()
    nothing = sa.literal(0, sa.BigInteger)
    columns = [
        (sums.c[name] if kind == side else nothing).label(f"{kind}_{name}")
        for kind in _SIDES
        for name in _SUMS
    ]
    return sa.select(*[sums.c[name] for name in KEY], *columns)


def _prove_totals(connection: Connection, day: date) -> None:
    batches, hours = (
        connection.execute(
            sa.select(*[whole(sa.func.sum(table.c[name])) for name in _SUMS]).where(
                table.c.day == day, *where
            )
        ).one()
        for table, where in ((event_batches, [event_batches.c.rolled_up]), (usage_hours, []))
    )
    if tuple(batches) != tuple(hours):
        raise ClosureError(
            "closure_mismatch", f"{day}: its batches of events are {tuple(batches)}, its hours {tuple(hours)}"
        )


def events_are_dropped(connection: Connection, day: date) -> bool:
    """Whether retention has dropped events of this day of usage."""
    dropped = sa.exists().where(event_batches.c.day == day, event_batches.c.dropped_at.is_not(None))
    return bool(connection.scalar(sa.select(dropped)))


def whole(total: sa.ColumnElement[Any]) -> sa.ColumnElement[int]:
    """A sum of whole numbers as one: PostgreSQL makes it a numeric, and nothing summed makes null."""
    return sa.cast(sa.func.coalesce(total, 0), sa.BigInteger)


def _roll_up_day(connection: Connection, day: date) -> int:
    _lock_day(connection, day)
    batches = list(connection.scalars(_waiting(day)))
    if not batches:
        return 0
    _add_to_hours(connection, day, batches)
    return len(batches)


def _hourly_sums() -> sa.Select[Any]:
    """Events as rows of `usage_hours`."""
    keys = [usage_events.c[name] for name in _KEY]
    sums = [whole(sa.func.sum(usage_events.c[name])).label(name) for name in COUNTS]
    return sa.select(*keys, sa.func.count().label("requests"), *sums).group_by(*keys)


def _add_to_hours(connection: Connection, day: date, batches: list[int]) -> None:
    new = _hourly_sums().where(
        usage_events.c.day == day, _among(connection, usage_events.c.batch_id, batches)
    )
    statement = insert(connection, usage_hours).from_select([*_KEY, *_SUMS], new)
    added = {name: usage_hours.c[name] + statement.excluded[name] for name in _SUMS}
    connection.execute(statement.on_conflict_do_update(index_elements=list(_KEY), set_=added))
    done = event_batches.update().where(_among(connection, event_batches.c.id, batches))
    connection.execute(done.values(rolled_up=True))


def _among(
    connection: Connection, column: sa.ColumnElement[int], numbers: list[int]
) -> sa.ColumnElement[bool]:
    """Whether a column is one of these numbers: more, perhaps, than a statement takes parameters."""
    if connection.dialect.name == "postgresql":
        return column == sa.any_(sa.literal(numbers, postgresql.ARRAY(sa.BigInteger)))
    each = sa.func.json_each(orjson.dumps(numbers).decode()).table_valued("value")
    return column.in_(sa.select(each.c.value))


def _lock_day(connection: Connection, day: date) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ROLL_UP_LOCK, day.toordinal())))
