"""A lock among all processes that work on a ledger; a crash lets go at once, unlike a lease."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Engine


@contextmanager
def alone(engine: Engine, key: int, name: str) -> Iterator[None]:
    """Wait until nobody else holds this lock of the ledger: `key` on PostgreSQL, a file beside SQLite's."""
    if engine.dialect.name == "postgresql":
        with engine.begin() as connection:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(key)))
            yield
    elif engine.url.database:
        with Path(f"{engine.url.database}-{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    else:
        yield  # in memory: there is nobody else
