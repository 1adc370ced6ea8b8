"""How to open the ledger, SQLite embedded or PostgreSQL by URL, and the transactions in it."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Engine

from billing.errors import LedgerError
from billing.simulated import TOLD, is_simulated
from billing.tables import bill_days, ledger_facts

log = logging.getLogger("tallybook.ledger")

# Any fixed number will do: who holds it is the only one to migrate, rate or close.
_LOCK_KEY = 7_411_402_556
_HUNG_SECONDS = 60  # in a transaction that waits for nothing but its client
_BUSY_SECONDS = 60  # how long SQLite waits for another writer


def open_ledger(url: str, time_zone: str) -> Engine:
    """Connect, bring the schema up to date, and check that the ledger was kept in this time zone.

    A ledger of simulated usage says so, in the log and on a command line's standard error.
    Raises: LedgerError: no such database, or its days were cut in another time zone.
    """
    try:
        engine = _engine(url)
        with writing(engine) as connection:
            lock_ledger(connection)
            config = Config()
            config.set_main_option("script_location", "billing:migrations")
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            _keep_fact(connection, "time_zone", time_zone)
            if is_simulated(connection):
                log.warning(TOLD)
    except (sa.exc.OperationalError, sa.exc.ArgumentError, OSError) as error:
        shown = sa.make_url(url).render_as_string(hide_password=True) if "://" in url else url
        raise LedgerError("ledger_unavailable", f"can't open the ledger {shown}: {error}") from error
    return engine


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """One transaction that writes; committed at the end, rolled back on any error.

    SQLite takes its one write lock at once, so that a transaction never fails half-way for want of it.
    """
    with engine.connect().execution_options(tallybook_writes=True) as connection, connection.begin():
        yield connection


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """One transaction that reads a consistent state and changes nothing."""
    options: dict[str, Any] = {}
    if engine.dialect.name == "postgresql":
        options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    with engine.connect().execution_options(**options) as connection, connection.begin():
        yield connection


def lock_ledger(connection: Connection) -> None:
    """Wait until no other transaction ingests, migrates, rates or closes; held until this one ends."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK_KEY)))


def share_ledger(connection: Connection) -> None:
    """Ingest beside others that ingest, but not while a day is closed: its bill would miss the event.

    An ingester that hangs in the midst, its machine frozen or cut off, is rolled back after _HUNG_SECONDS:
    no day could be closed, and nobody else could go on with what it was reading.
    """
    if connection.dialect.name == "postgresql":
        hung = sa.func.set_config("idle_in_transaction_session_timeout", f"{_HUNG_SECONDS}s", True)
        connection.execute(sa.select(hung, sa.func.pg_advisory_xact_lock_shared(_LOCK_KEY)))


def closed_days(connection: Connection, among: Collection[date]) -> set[date]:
    """Which of these days are closed."""
    query = sa.select(bill_days.c.day).where(bill_days.c.state == "closed", bill_days.c.day.in_(among))
    return set(connection.scalars(query))


def insert(connection: Connection, table: sa.Table) -> postgresql.Insert | sqlite.Insert:
    """An INSERT of the connection's dialect, which knows ON CONFLICT."""
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


def _keep_fact(connection: Connection, name: str, value: str) -> None:
    connection.execute(
        insert(connection, ledger_facts).values(name=name, value=value).on_conflict_do_nothing()
    )
    kept = connection.scalar(sa.select(ledger_facts.c.value).where(ledger_facts.c.name == name))
    if kept != value:
        raise LedgerError(
            f"{name}_changed",
            f"this ledger's {name} is {kept}, the settings say {value}; "
            "days that were cut in one time zone can't be continued in another",
        )


def _engine(url: str) -> Engine:
    parsed = sa.make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return sa.create_engine(parsed, pool_pre_ping=True)
    if parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(parsed, connect_args={"timeout": _BUSY_SECONDS})

    @sa.event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver begins no transaction of its own; `_begin` does
        _use_wal(connection)
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("tallybook_writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _use_wal(connection: sqlite3.Connection) -> None:
    """Let readers go on beside a writer: a mode that the file keeps from its first use on.

    Two processes that open a new ledger at once are told "locked" without waiting, so the wait is here.
    """
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
                connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return
