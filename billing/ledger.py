"""The ledger's tables, and how to open it: SQLite embedded, PostgreSQL by URL."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Dialect, Engine

from billing.errors import LedgerError

metadata = sa.MetaData()
# Any fixed number will do: who holds it is the only one to migrate, rate or close.
_LOCK_KEY = 7_411_402_556


class Instant(sa.types.TypeDecorator[datetime]):
    """A moment in UTC; naive values are refused, because they mean another moment on another machine."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Python to database."""
        if value is not None and value.tzinfo is None:
            raise ValueError("a moment needs a UTC offset")
        return value and value.astimezone(timezone.utc)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Database to Python; SQLite keeps no offset, and what it keeps is UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=timezone.utc) if value.tzinfo is None else value.astimezone(timezone.utc)


def _subject() -> list[sa.Column[str]]:
    """Whose usage, of what: the columns that aggregates and lines are kept by.

    The user's column is `user_id`, because a bare `user` means the login in PostgreSQL.
    """
    names = ("user_id", "project", "department", "model", "model_version")
    return [sa.Column(name, sa.Text, nullable=False) for name in names]


SUBJECT = ("user_id", "project", "department", "model", "model_version")
COUNTS = ("prompt_tokens", "cached_tokens", "completion_tokens")

# In the order of its bytes on every database, so that the events of a bill are hashed in one order.
_event_id = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")

usage_events = sa.Table(
    "usage_events",
    metadata,
    sa.Column("id", _event_id, primary_key=True),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("time", Instant, nullable=False),
    sa.Column("day", sa.Date, nullable=False, index=True),
    *_subject(),
    sa.Column("operation", sa.Text, nullable=False),
    sa.Column("tokenizer_fingerprint", sa.Text, nullable=False),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("cached_tokens", sa.BigInteger, nullable=False),
    sa.Column("completion_tokens", sa.BigInteger, nullable=False),
    sa.Column("usage_estimated", sa.Boolean, nullable=False),
    sa.Column("duration_seconds", sa.Double, nullable=False),
    sa.Column("time_to_first_token_seconds", sa.Double),
    sa.Column("client_ip", sa.Text, nullable=False),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("prompt_sha256", sa.Text),
    sa.Column("prompt_prefix", sa.Text),
    sa.Column("extra", sa.JSON(none_as_null=True)),  # fields of a newer producer
    sa.Column("content_sha256", sa.Text, nullable=False),  # tells a repeated event from a forged one
    sa.Column("bill_day", sa.Date),  # the one bill it is on: its day's, or, when it came late, a later one's
)
_came_late = usage_events.c.bill_day.is_(None) | (usage_events.c.bill_day != usage_events.c.day)
sa.Index(
    "usage_events_late",
    usage_events.c.day,
    sqlite_where=_came_late,
    postgresql_where=_came_late,
)

usage_hours = sa.Table(
    "usage_hours",
    metadata,
    sa.Column("day", sa.Date, primary_key=True),
    sa.Column("hour", Instant, primary_key=True),
    *[sa.Column(c.name, c.type, primary_key=True) for c in _subject()],
    sa.Column("requests", sa.BigInteger, nullable=False),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("cached_tokens", sa.BigInteger, nullable=False),
    sa.Column("completion_tokens", sa.BigInteger, nullable=False),
)

journal_offsets = sa.Table(
    "journal_offsets",
    metadata,
    sa.Column("segment", sa.Text, primary_key=True),
    sa.Column("offset_bytes", sa.BigInteger, nullable=False),
)

set_aside = sa.Table(
    "set_aside",
    metadata,
    sa.Column("segment", sa.Text, primary_key=True),
    sa.Column("offset_bytes", sa.BigInteger, primary_key=True),
    sa.Column("code", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("raw", sa.LargeBinary, nullable=False),
    sa.Column("set_aside_at", Instant, nullable=False),
)

prices = sa.Table(
    "prices",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),  # digest of the terms: other terms are another price
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("model_version", sa.Text),  # null: every version of the model
    sa.Column("effective_from", sa.Date, nullable=False),
    sa.Column("currency", sa.Text, nullable=False),
    sa.Column("per_tokens", sa.BigInteger, nullable=False),
    sa.Column("input", sa.Text, nullable=False),  # decimals as text: exact on every database
    sa.Column("cached_input", sa.Text, nullable=False),
    sa.Column("output", sa.Text, nullable=False),
    sa.Column("imported_at", Instant, nullable=False),
    sa.Column("withdrawn_at", Instant),  # no longer on the list, and never billed
)

bill_days = sa.Table(
    "bill_days",
    metadata,
    sa.Column("day", sa.Date, primary_key=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("early", sa.Boolean, nullable=False),  # closed before its end, on demand
    sa.Column("closed_at", Instant),
    sa.Column("closed_with", sa.Date),  # the later day whose closing caught up with this one
    sa.CheckConstraint("state in ('draft', 'closed')", name="bill_days_state"),
)

bill_lines = sa.Table(
    "bill_lines",
    metadata,
    sa.Column("day", sa.Date, sa.ForeignKey("bill_days.day"), primary_key=True),  # the bill it is on
    sa.Column("usage_day", sa.Date, primary_key=True),  # earlier than `day`: a correction
    *[sa.Column(c.name, c.type, primary_key=True) for c in _subject()],
    sa.Column("direction", sa.Text, primary_key=True),
    sa.Column("price_id", sa.Text, primary_key=True),  # empty: unrated
    sa.Column("quantity_tokens", sa.BigInteger, nullable=False),
    sa.Column("unit_price", sa.Text),
    sa.Column("per_tokens", sa.BigInteger),
    sa.Column("currency", sa.Text),
    sa.Column("amount_minor", sa.BigInteger),  # null: unrated, which is not free
    sa.CheckConstraint("(price_id = '') = (amount_minor is null)", name="unrated_has_no_amount"),
    sa.Index("bill_lines_usage_day", "usage_day"),
)

mails = sa.Table(
    "mails",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),  # what it is about: a mail is composed once
    sa.Column("day", sa.Date, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("message", sa.LargeBinary, nullable=False),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("sent_at", Instant),
    sa.Column("delivered_to", sa.JSON, nullable=False),  # who took it: they don't get it again
    sa.Column("last_error", sa.Text),
    sa.CheckConstraint("state in ('pending', 'sent', 'refused')", name="mails_state"),
)

audit_records = sa.Table(
    "audit_records",
    metadata,
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),  # 1, 2, 3, … without a gap
    sa.Column("recorded_at", Instant, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("body", sa.Text, nullable=False),  # JSON, to the letter as it was hashed
    sa.Column("previous_sha256", sa.Text, nullable=False),
    sa.Column("sha256", sa.Text, nullable=False),
)

ledger_facts = sa.Table(
    "ledger_facts",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)


def open_ledger(url: str, time_zone: str) -> Engine:
    """Connect, bring the schema up to date, and check that the ledger was kept in this time zone.

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
    """Ingest beside others that ingest, but not while a day is closed: its bill would miss the event."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock_shared(_LOCK_KEY)))


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
    engine = sa.create_engine(parsed, connect_args={"timeout": 60})

    @sa.event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver begins no transaction of its own; `_begin` does
        # Asked first: to set it, even to what it is, needs the file alone, and does not wait for that.
        if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
            connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("tallybook_writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine
