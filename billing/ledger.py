"""How to open the ledger, SQLite embedded or PostgreSQL by URL, and the transactions in it."""

from __future__ import annotations

import logging
from collections.abc import Collection
from datetime import date

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Engine

from billing.errors import LedgerError
from billing.simulation.mark import TOLD, is_simulated
from billing.tables import bill_days, ledger_facts
from tallybook.database import connect
from tallybook.database import reading as reading
from tallybook.database import writing as writing

log = logging.getLogger("tallybook.ledger")

# Any fixed number will do: who holds it is the only one to migrate, rate or close.
_LOCK_KEY = 7_411_402_556
_HUNG_SECONDS = 60  # in a transaction that waits for nothing but its client


def open_ledger(url: str, time_zone: str) -> Engine:
    """Connect, bring the schema up to date, and check that the ledger was kept in this time zone.

    A ledger of simulated usage says so, in the log and on a command line's standard error.
    Raises: LedgerError: no such database, or one that can't be used (code ledger_unavailable); its schema is
        of a newer Tallybook (ledger_newer); its days were cut in another time zone (time_zone_changed).
    """
    try:
        engine = connect(url)
        with writing(engine) as connection:
            lock_ledger(connection)
            config = Config()
            config.set_main_option("script_location", "billing:migrations")
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            _keep_fact(connection, "time_zone", time_zone)
            if is_simulated(connection):
                log.warning(TOLD)
    except CommandError as error:
        raise LedgerError("ledger_newer", f"this ledger was used by another version: {error}") from error
    except (sa.exc.DatabaseError, sa.exc.ArgumentError, ImportError, OSError) as error:
        shown = sa.make_url(url).render_as_string(hide_password=True) if "://" in url else url
        raise LedgerError("ledger_unavailable", f"can't open the ledger {shown}: {error}") from error
    return engine


def lock_ledger(connection: Connection) -> None:
    """Wait until no other transaction ingests, migrates, rates or closes; held until this one ends."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK_KEY)))


def lock_ledger_at_once(connection: Connection) -> bool:
    """`lock_ledger` for a transaction that may share the ledger already: false when it would have to wait.

    Of two that share it and wait to have it alone, each would wait for the other.
    """
    if connection.dialect.name != "postgresql":
        return True
    return connection.execute(sa.select(sa.func.pg_try_advisory_xact_lock(_LOCK_KEY))).scalar_one() is True


def share_ledger(connection: Connection) -> None:
    """Ingest beside others that ingest, but not while a day is closed: its bill would miss the event.

    An ingester that hangs in the midst, its machine frozen or cut off, is rolled back after _HUNG_SECONDS:
    no day could be closed, and nobody else could go on with what it was reading.
    """
    if connection.dialect.name == "postgresql":
        hung = sa.func.set_config("idle_in_transaction_session_timeout", f"{_HUNG_SECONDS}s", True)
        connection.execute(sa.select(hung, sa.func.pg_advisory_xact_lock_shared(_LOCK_KEY)))


def hold_events(connection: Connection) -> None:
    """Let nobody drop events until the caller's transaction ends; to be done before anything else in it.

    PostgreSQL drops a day's table also for those who read an older state, in which its events are there.
    """
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("LOCK TABLE usage_events IN ACCESS SHARE MODE")


def closed_days(connection: Connection, among: Collection[date]) -> set[date]:
    """Which of these days are closed."""
    query = sa.select(bill_days.c.day).where(bill_days.c.state == "closed", bill_days.c.day.in_(among))
    return set(connection.scalars(query))


def kept_facts(connection: Connection) -> dict[str, str]:
    """What the ledger says of itself: its time zone, and whether its usage is simulated."""
    return {row.name: row.value for row in connection.execute(sa.select(ledger_facts))}


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
