"""Databases by URL, SQLite embedded or PostgreSQL, and the transactions in them."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EIO
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

ATTACHED = "attached"  # the schema of a file that a transaction on SQLite reads besides
_BUSY_SECONDS = 60  # how long SQLite waits for another writer


def connect(url: str) -> Engine:
    """An engine for this SQLAlchemy URL; a SQLite file is made, with its folder, when it is first used."""
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


@contextmanager
def writing(engine: Engine, attached: str | None = None) -> Iterator[Connection]:
    """One transaction that writes; committed at the end, rolled back on any error.

    SQLite takes its one write lock at once, so that a transaction never fails half-way for want of it.
    `attached`: another SQLite file, to be read as the schema ATTACHED.
    Raises: OSError: it can't be read.
    """
    with (
        engine.connect().execution_options(tallybook_writes=True) as connection,
        _attaching(connection, attached),
        connection.begin(),
    ):
        yield connection


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """One transaction that reads a consistent state and changes nothing."""
    options: dict[str, Any] = {}
    if engine.dialect.name == "postgresql":
        options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    with engine.connect().execution_options(**options) as connection, connection.begin():
        yield connection


@contextmanager
def _attaching(connection: Connection, file: str | None) -> Iterator[None]:
    """Attach a file for what is done inside, which a transaction's begin and end must both be."""
    if file is None:
        yield
        return
    driver: Any = connection.connection.driver_connection  # beside SQLAlchemy, which would begin one
    try:
        driver.execute(f"ATTACH ? AS {ATTACHED}", (os.fsencode(file),))  # its name may be no UTF-8
    except sqlite3.Error as error:
        raise OSError(EIO, f"can't be attached: {error}", file) from error
    try:
        yield
    finally:
        driver.execute(f"DETACH {ATTACHED}")


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
