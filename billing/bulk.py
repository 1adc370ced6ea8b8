"""Many rows at once: in by COPY on PostgreSQL, by executemany on SQLite; out without more than tuples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from billing.csv_lines import csv_line

_ROWS_AT_ONCE = 5000


def insert_rows(
    connection: Connection, table: sa.Table, columns: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
    """Insert rows, each the values of `columns`, in the caller's transaction.

    Values go to the driver as they are: days and moments as ISO 8601 text, moments in UTC to the
    microsecond with their offset, which is how SQLite keeps them and what PostgreSQL reads.
    """
    names = ", ".join(columns)
    cursor: Any = connection.connection.cursor()
    if by_copy(connection):
        copy_lines(connection, table.name, columns, b"\n".join([*map(csv_line, rows), b""]))
    else:
        marks = ", ".join("?" * len(columns))
        cursor.executemany(f"INSERT INTO {table.name} ({names}) VALUES ({marks})", rows)  # noqa: S608


def by_copy(database: Connection | Engine) -> bool:
    """Whether rows go in by COPY, and so are best made ready as lines."""
    return database.dialect.name == "postgresql"


def stream(connection: Connection, query: sa.Executable, *, ahead: bool = False) -> Iterator[tuple[Any, ...]]:
    """Rows of a query as the driver gives them, some thousand at a time.

    For text, whole numbers and truth, which need no conversion on any database.
    `ahead`: PostgreSQL may fetch the next rows while the caller works on these, and does nothing else on the
    connection.
    """
    with connection.execute(query, execution_options={"yield_per": _ROWS_AT_ONCE}) as result:
        # SQLAlchemy may have read one row ahead; what comes after it is taken from the driver.
        yield from map(tuple, result.fetchmany(1))
        cursor: Any = result.cursor
        if cursor is None:
            return
        if ahead and connection.dialect.name == "postgresql":
            yield from _fetched_ahead(cursor)
        while part := cursor.fetchmany(_ROWS_AT_ONCE):
            yield from part


def _fetched_ahead(cursor: Any) -> Iterator[tuple[Any, ...]]:
    with ThreadPoolExecutor(1) as thread:
        part = cursor.fetchmany(_ROWS_AT_ONCE)
        while part:
            coming = thread.submit(cursor.fetchmany, _ROWS_AT_ONCE)
            yield from part
            part = coming.result()


def copy_lines(connection: Connection, table: str, columns: Sequence[str], lines: bytes) -> None:
    """Insert ready lines, each with its end, into PostgreSQL, in the caller's transaction.

    A line is CSV as `billing.csv_lines` makes it, which is also what is between the brackets of a JSON list,
    as long as no string in it needs an escape.
    """
    names, cursor = ", ".join(columns), connection.connection.cursor()
    how = r"(FORMAT csv, NULL 'null', ESCAPE '\', ENCODING 'UTF8')"
    with cursor.copy(f"COPY {table} ({names}) FROM STDIN WITH {how}") as copy:
        copy.write(lines)
