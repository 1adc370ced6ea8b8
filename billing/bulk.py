"""Many rows at once: by COPY into PostgreSQL, by executemany into SQLite."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection


def insert_rows(
    connection: Connection, table: sa.Table, columns: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
    """Insert rows, each the values of `columns`, in the caller's transaction; memory holds one at a time.

    Values go to the driver as they are: days and moments as ISO 8601 text, moments in UTC to the
    microsecond with their offset, which is how SQLite keeps them and what PostgreSQL reads.
    """
    names = ", ".join(columns)
    cursor: Any = connection.connection.cursor()
    if connection.dialect.name == "postgresql":
        with cursor.copy(f"COPY {table.name} ({names}) FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)
    else:
        marks = ", ".join("?" * len(columns))
        cursor.executemany(f"INSERT INTO {table.name} ({names}) VALUES ({marks})", rows)  # noqa: S608


def copy_lines(connection: Connection, table: str, columns: Sequence[str], lines: Iterable[bytes]) -> None:
    """Insert ready lines into PostgreSQL, in the caller's transaction.

    A line is CSV as `billing.csv_lines` makes it, which is also what is between the brackets of a JSON list,
    as long as no string in it needs an escape.
    """
    names, cursor = ", ".join(columns), connection.connection.cursor()
    how = r"(FORMAT csv, NULL 'null', ESCAPE '\', ENCODING 'UTF8')"
    with cursor.copy(f"COPY {table} ({names}) FROM STDIN WITH {how}") as copy:
        copy.write(b"\n".join([*lines, b""]))
