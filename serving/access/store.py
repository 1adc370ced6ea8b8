"""The gateway's own store, on SQLite or PostgreSQL: keys, limits, grants and idempotent answers.

It holds decisions, and no usage: what was used is in the ledger. Every change of keys, limits and grants
raises the one change number, so a worker that polls it knows when to read them anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Dialect, Engine

from serving.errors import AccessUnavailableError
from tallybook.acts import Act
from tallybook.acts import record as record_act
from tallybook.database import connect, reading, writing

SCHEMA = 1
SOURCE = "tallybook/access"  # of the acts that tell of changes
_LOCK_KEY = 7_411_402_558  # any fixed number: who holds it is the only one to make the tables
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)


class Moment(sa.types.TypeDecorator[datetime]):
    """A moment, kept as microseconds since 1970: the same on every database."""

    impl = sa.BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        """Python to database."""
        return None if value is None else (value - _EPOCH) // _MICROSECOND

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        """Database to Python."""
        return None if value is None else _EPOCH + value * _MICROSECOND


metadata = sa.MetaData()

# One row: the schema's version, and the number of changes so far.
state = sa.Table(
    "access_state",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("schema_version", sa.Integer, nullable=False),
    sa.Column("changes", sa.BigInteger, nullable=False),
)

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("secret_sha256", sa.LargeBinary, nullable=False, unique=True),
    sa.Column("name", sa.Text, nullable=False),  # what it is for
    sa.Column("user_id", sa.Text, nullable=False),
    sa.Column("project", sa.Text, nullable=False),
    sa.Column("department", sa.Text),  # null: the project's
    sa.Column("models", sa.JSON(none_as_null=True)),  # null: every model
    sa.Column("networks", sa.JSON(none_as_null=True)),  # null: from everywhere
    sa.Column("for_others", sa.Boolean, nullable=False),  # whether X-User-ID and X-Project-ID may say else
    sa.Column("approver", sa.Boolean, nullable=False),  # whether it may decide about overage
    sa.Column("created_at", Moment, nullable=False),
    sa.Column("created_by", sa.Text, nullable=False),
    sa.Column("expires_at", Moment),
    sa.Column("revoked_at", Moment),
)

# A key that was rotated, and the one that follows it.
key_rotations = sa.Table(
    "key_rotations",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("new_key", sa.Text, nullable=False),
)

# Limits that differ from the settings' for one user, project or key.
quota_limits = sa.Table(
    "quota_limits",
    metadata,
    sa.Column("quota", sa.Text, primary_key=True),
    sa.Column("subject", sa.Text, primary_key=True),  # the user, project or key
    sa.Column("most", sa.BigInteger, nullable=False),
)

# Overage: what a user asked for, and what an approver made of it.
quota_grants = sa.Table(
    "quota_grants",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("quota", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("tokens", sa.BigInteger, nullable=False),  # asked for; once approved, granted
    sa.Column("until", Moment, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("asked_by", sa.Text, nullable=False),
    sa.Column("asked_at", Moment, nullable=False),
    sa.Column("decided_by", sa.Text),
    sa.Column("decided_at", Moment),
    sa.CheckConstraint("state in ('asked', 'approved', 'denied', 'ended')", name="quota_grants_state"),
)

# Answers that a client may ask for again by its Idempotency-Key, for a day; see serving.access.idempotency.
idempotent_answers = sa.Table(
    "idempotent_answers",
    metadata,
    sa.Column("caller", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("request_sha256", sa.LargeBinary, nullable=False),
    sa.Column("attempt", sa.Text, nullable=False),  # the request that is answering, or has answered
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("held_until", Moment, nullable=False),  # when a request that says nothing more is given up
    sa.Column("event", sa.LargeBinary),  # the usage event, as it goes into the journal
    sa.Column("answer", sa.LargeBinary),
    sa.Column("asked_at", Moment, nullable=False, index=True),
    sa.CheckConstraint("state in ('running', 'answered', 'done')", name="idempotent_answers_state"),
)


def open_store(url: str) -> Engine:
    """Connect, and make the tables where they are missing.

    Raises: AccessUnavailableError: it can't be opened, or a newer version of the program made it.
    """
    try:
        engine = connect(url)
        with writing(engine) as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK_KEY)))
            metadata.create_all(connection)
            connection.execute(
                insert(connection, state)
                .values(id=1, schema_version=SCHEMA, changes=0)
                .on_conflict_do_nothing()
            )
            found = connection.scalar(sa.select(state.c.schema_version))
    except (sa.exc.SQLAlchemyError, OSError) as error:
        raise AccessUnavailableError(f"can't open the access store {_shown(url)}: {_told(error)}") from error
    if found != SCHEMA:
        raise AccessUnavailableError(f"the access store {_shown(url)} is of version {found}, not {SCHEMA}")
    return engine


@contextmanager
def changing(engine: Engine, journal_dir: Path, act: Act) -> Iterator[Connection]:
    """One transaction that changes keys, limits or grants, and the act that tells of it.

    The act is durable before the change is: no change is without an act.
    Raises: AccessUnavailableError; OSError: the act can't be recorded, so nothing was changed.
    """
    try:
        with writing(engine) as connection:
            connection.execute(state.update().values(changes=state.c.changes + 1))
            yield connection
            record_act(journal_dir, act)
    except sa.exc.SQLAlchemyError as error:
        raise AccessUnavailableError(f"the access store can't be changed: {_told(error)}") from error


@contextmanager
def using(engine: Engine) -> Iterator[Connection]:
    """One transaction that writes what is no decision. Raises: AccessUnavailableError."""
    try:
        with writing(engine) as connection:
            yield connection
    except sa.exc.SQLAlchemyError as error:
        raise AccessUnavailableError(f"the access store can't be written: {_told(error)}") from error


@contextmanager
def looking(engine: Engine) -> Iterator[Connection]:
    """One transaction that reads a consistent state. Raises: AccessUnavailableError."""
    try:
        with reading(engine) as connection:
            yield connection
    except sa.exc.SQLAlchemyError as error:
        raise AccessUnavailableError(f"the access store can't be read: {_told(error)}") from error


def changes(connection: Connection) -> int:
    """The number of changes so far."""
    return connection.scalar(sa.select(state.c.changes)) or 0


def insert(connection: Connection, table: sa.Table) -> postgresql.Insert | sqlite.Insert:
    """An INSERT of the connection's dialect, which knows ON CONFLICT."""
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


def _shown(url: str) -> str:
    return sa.make_url(url).render_as_string(hide_password=True) if "://" in url else url


def _told(error: BaseException) -> str:
    cause: Any = getattr(error, "orig", None) or error
    return " ".join(str(cause).split())
