"""Retention: dropping the rows of events whose bills are closed and proven; their ids and hashes stay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timezone
from typing import Any

import sqlalchemy as sa
from psycopg.errors import LockNotAvailable
from sqlalchemy.engine import Connection, Engine

from billing import chain
from billing.aggregates import (
    events_are_dropped,
    hours_sha256,
    prove_dropped_hours,
    prove_each_hour,
    prove_hours,
)
from billing.day_sums import networks_sha256
from billing.errors import AuditError, LedgerError
from billing.ledger import closed_days, lock_ledger, writing
from billing.owing import owing_days
from billing.partitions import partition_name
from billing.prices.book import kept_tariff
from billing.seals import batches_root, ids_sha256, verify_events
from billing.tables import event_batches, usage_events

_LOCK_SECONDS = 30  # how long dropping a partition waits for those who read


@dataclass(frozen=True)
class Dropped:
    """A day whose events were dropped, and how many they were."""

    day: date
    events: int


def drop_events(ledger: Engine, before: date, now: datetime | None = None) -> Iterator[Dropped]:
    """Drop the event rows of every day before `before` that is on closed bills, a transaction a day.

    Each day is proven first: its events are what was stored, and its hours are their sums. What stays:
    every id with the hash of its content, so that no event is ever billed again; every batch with its
    root, so that the seals can be checked; the hours and the bills. A day that still owes is kept: events
    that came late, or unrated tokens that have got their price, are to be billed.
    Raises: AuditError, ClosureError: a day can't be proven; it and the later ones are kept.
        LedgerError: somebody reads the events for too long (code ledger_busy).
    """
    with ledger.connect() as connection:
        query = sa.select(event_batches.c.day).where(
            event_batches.c.day < before, event_batches.c.dropped_at.is_(None)
        )
        days = sorted(set(connection.scalars(query)))
    for day in days:
        try:
            with writing(ledger) as connection:
                dropped = _drop_day(connection, day, now or datetime.now(timezone.utc))
        except sa.exc.OperationalError as error:
            if not _is_busy(error):
                raise
            raise LedgerError(
                "ledger_busy", f"{day}: somebody reads the events; try again: {error}"
            ) from error
        if dropped is not None:
            yield dropped


def verify_dropped(connection: Connection, acts: Mapping[str, Mapping[str, Any]]) -> None:
    """Check that the dropped batches are those that the chain says were dropped.

    Args:
        acts: bodies of the chain's records of kind `retention`, by their `day` and `dropped_at`.
    Raises: AuditError: a batch was marked as dropped, or altered, besides these (code retention_altered).
    """
    gone = sa.select(event_batches).where(event_batches.c.dropped_at.is_not(None))
    found: dict[str, list[Mapping[str, Any]]] = {}
    for batch in map(dict, connection.execute(gone.order_by(event_batches.c.id)).mappings()):
        found.setdefault(f"{batch['day']} {batch['dropped_at'].isoformat()}", []).append(batch)
    for act in sorted(found.keys() | acts.keys()):
        root = batches_root(found.get(act, ()))
        if act not in acts or acts[act]["events_root"] != root:
            raise AuditError("retention_altered", f"the batches dropped for {act} are not those on record")


def _last_drop(connection: Connection, day: date) -> Mapping[str, Any]:
    """The body of the chain's last record of kind `retention` of this day; the whole chain is read."""
    last: Mapping[str, Any] = {}
    for _, kind, body in chain.records(connection):
        if kind == "retention" and body["day"] == day.isoformat():
            last = body
    return last


def _is_busy(error: sa.exc.OperationalError) -> bool:
    """Whether it is for want of a lock."""
    return isinstance(error.orig, LockNotAvailable) or "database is locked" in str(error.orig)


def _drop_day(connection: Connection, day: date, now: datetime) -> Dropped | None:
    lock_ledger(connection)
    kept = sa.and_(event_batches.c.day == day, event_batches.c.dropped_at.is_(None))
    query = sa.select(event_batches).where(kept).order_by(event_batches.c.id)
    batches = [dict(row) for row in connection.execute(query).mappings()]
    bills = {batch["bill_day"] for batch in batches}
    owing = owing_days(connection, date.max, kept_tariff(connection).price_list)
    if day in owing or closed_days(connection, bills) != bills:
        return None
    prove_hours(connection, day)
    events = verify_events(connection, day)
    prove_each_hour(connection, day)
    if events_are_dropped(connection, day):
        last = _last_drop(connection, day)
        if "hours_sha256" in last:
            prove_dropped_hours(connection, day, last)
    connection.execute(event_batches.update().where(kept).values(dropped_at=now))
    root = batches_root(batches)
    act = {
        "day": day.isoformat(),
        "dropped_at": now.isoformat(),
        "events": events,
        "events_root": root,
        "ids_sha256": ids_sha256(connection, day),
        "networks_sha256": networks_sha256(connection, day),
        "hours_sha256": hours_sha256(connection, day, dropped=True),
    }
    chain.append(connection, "retention", act, now)
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_LOCK_SECONDS}s'")
        connection.exec_driver_sql(f"DROP TABLE {partition_name(day)}")
    else:
        connection.execute(usage_events.delete().where(usage_events.c.day == day))
    return Dropped(day, events)
