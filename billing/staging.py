"""Values in a SQLite file of their own, from which the ledger takes them by one statement a table.

The process that reads a large journal writes it, so that the one that stores has no values to bind: an event
costs it a third.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from datetime import date
from errno import EIO
from pathlib import Path

from billing.events import VALUE_COLUMNS
from billing.packing import Staged, Values

# The tables of the file: `number` tells which of the chunk's days a row is on, the first being 0.
_IDS = ("id", "number", "content_sha256")
_EVENTS = (*VALUE_COLUMNS, "day", "number")
# Nothing here outlives the process: no journal, no waiting for the disk, no other reader to lock out.
_PRAGMAS = "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA page_size = 65536;"


def stage(values: Values, days: Iterable[date], file: Path) -> Staged:
    """Write the values of these days into a file, anew. Raises: OSError: it can't be written."""
    file.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(file, isolation_level=None)) as connection:
            connection.executescript(_PRAGMAS)
            connection.execute("BEGIN")
            # Columns without a type keep each value as it is.
            connection.execute(f"CREATE TABLE ids ({', '.join(_IDS)})")
            connection.execute(f"CREATE TABLE events ({', '.join(_EVENTS)})")
            connection.executemany("INSERT INTO ids VALUES (?, ?, ?)", values.ids)
            marks = ", ".join("?" * len(VALUE_COLUMNS))
            for number, (day, rows) in enumerate(zip(days, values.events, strict=True)):
                connection.executemany(f"INSERT INTO events VALUES ({marks}, '{day}', {number})", rows)  # noqa: S608
            connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise OSError(EIO, f"what was read can't be staged: {error}", str(file)) from error
    return Staged(str(file))
