"""The tables that hold each day's events on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, timedelta

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from billing.ledger import writing

_PARTITIONS_LOCK = 7_411_402_557


def prepare_days(ledger: Engine, days: Iterable[date]) -> None:
    """Make the partitions that these days need, in a transaction of its own; SQLite needs none.

    For a caller that shares the ledger, so that retention drops none of them before it is used. A partition
    is made as a table and then attached, which waits for nobody who reads or ingests.
    """
    if ledger.dialect.name != "postgresql":
        return
    wanted = {partition_name(day): day for day in days}
    query = sa.text("SELECT relname FROM pg_class WHERE relname = ANY(:names)")
    with ledger.connect() as connection:
        present = set(connection.scalars(query, {"names": list(wanted)}))
    for name in sorted(wanted.keys() - present):
        with writing(ledger) as connection:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_PARTITIONS_LOCK)))
            if connection.scalar(query, {"names": [name]}) is None:
                values = f"FOR VALUES FROM ('{wanted[name]}') TO ('{wanted[name] + timedelta(days=1)}')"
                connection.exec_driver_sql(f"CREATE TABLE {name} (LIKE usage_events INCLUDING DEFAULTS)")
                connection.exec_driver_sql(f"ALTER TABLE usage_events ATTACH PARTITION {name} {values}")


def partition_name(day: date) -> str:
    """The table that holds a day's events on PostgreSQL."""
    return f"usage_events_{day:%Y%m%d}"
