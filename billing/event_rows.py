"""Rows of events into their tables, in whichever form `billing.packing` has made them ready."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy.engine import Connection

from billing.bulk import copy_lines, insert_rows
from billing.events import BATCH, LINE_COLUMNS, VALUE_COLUMNS
from billing.packing import Lines, Packed, Staged, batch_stand_in
from billing.partitions import partition_name
from billing.tables import event_ids
from tallybook.database import ATTACHED

_CLAIM = ("id", "batch_id", "content_sha256")
_VALUES = ", ".join(VALUE_COLUMNS)
_INTO_EVENTS = f"INSERT INTO usage_events ({_VALUES}, day, batch_id)"


def insert_ids(connection: Connection, packed: Packed, batch_ids: Sequence[int]) -> None:
    """Insert the ids of events into `event_ids`, in the caller's transaction.

    `batch_ids`: a number for the batch of each day, in the order of days; for staged rows they follow one
    another.
    Raises: psycopg.errors.UniqueViolation, sqlite3.IntegrityError: one is there already.
    """
    rows = packed.rows
    if isinstance(rows, Lines):
        lines = rows.ids
        for number, batch_id in enumerate(batch_ids):
            lines = lines.replace(batch_stand_in(number), b"%d" % batch_id)
        copy_lines(connection, event_ids.name, _CLAIM, lines)
    elif isinstance(rows, Staged):
        source = f"SELECT id, number + {batch_ids[0]}, content_sha256 FROM {ATTACHED}.ids"  # noqa: S608
        _execute(connection, f"INSERT INTO event_ids ({', '.join(_CLAIM)}) {source}")
    else:
        claims = [(event_id, batch_ids[number], digest) for event_id, number, digest in rows.ids]
        insert_rows(connection, event_ids, _CLAIM, claims)


def insert_events(connection: Connection, packed: Packed, batch_ids: Sequence[int]) -> None:
    """Insert events into `usage_events`, likewise; their days' partitions must be there."""
    rows = packed.rows
    if isinstance(rows, Lines):
        for each, lines, batch_id in zip(packed.days, rows.events, batch_ids, strict=True):
            stamped = lines.replace(BATCH, b"%d" % batch_id)
            copy_lines(connection, partition_name(each.day), LINE_COLUMNS, stamped)
    elif isinstance(rows, Staged):
        source = f"SELECT {_VALUES}, day, number + {batch_ids[0]} FROM {ATTACHED}.events"  # noqa: S608
        _execute(connection, f"{_INTO_EVENTS} {source}")
    else:
        marks = ", ".join("?" * len(VALUE_COLUMNS))
        cursor: Any = connection.connection.cursor()
        for each, values, batch_id in zip(packed.days, rows.events, batch_ids, strict=True):
            cursor.executemany(f"{_INTO_EVENTS} VALUES ({marks}, '{each.day}', {batch_id})", values)


def _execute(connection: Connection, statement: str) -> None:
    cursor: Any = connection.connection.cursor()  # the driver's own errors, as of the other forms
    cursor.execute(statement)
