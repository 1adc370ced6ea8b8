"""FOCUS rows in a file of their own format, written as they are read; CSV itself."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, tzinfo
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing.errors import ExportError
from billing.exports.closed_bills import Exported, Period, check_closed, closed_lines, harmless, open_days
from billing.exports.focus import COLUMNS, Row, Value, focus_row
from billing.rating import UNRATED
from billing.simulation.mark import is_simulated
from billing.tables import bill_lines

RowsWriter: TypeAlias = Callable[[Iterable[Row], BinaryIO], int]


def rows_writer(file: Path) -> RowsWriter:
    """How a file of this name is written.

    Raises: ExportError: its ending is neither .csv nor .parquet (code export_format_unknown).
    """
    if file.suffix.lower() == ".csv":
        return write_csv
    if file.suffix.lower() == ".parquet":
        from billing.exports.focus_parquet import (
            write_parquet,  # not before it is asked for: it takes long to load
        )

        return write_parquet
    raise ExportError("export_format_unknown", f"{file} must end in .csv or .parquet, which says what it is")


def export_focus(
    connection: Connection, wanted: Period, zone: tzinfo, provider: str, write: RowsWriter, out: BinaryIO
) -> Exported:
    """Write the closed bills of a period, whatever its size, a few lines in memory at a time.

    Raises: ExportError: there are none (code no_bills), or a number needs more digits than the format has
        (inexact_decimal).
    """
    check_closed(connection, wanted)
    left_out, simulated = 0, is_simulated(connection)

    def rows() -> Iterator[Row]:
        nonlocal left_out
        for line in closed_lines(connection, wanted, *_order()):
            if line["price_id"] == UNRATED:
                left_out += 1
            else:
                yield focus_row(dict(line), zone, provider, simulated=simulated)

    lines = write(rows(), out)
    return Exported(lines, left_out, tuple(open_days(connection, wanted, zone)))


def write_csv(rows: Iterable[Row], out: BinaryIO) -> int:
    """Write rows as CSV in UTF-8: decimals with every digit, moments in UTC, nothing for null; how many.

    Text that a spreadsheet would take for a formula gets a leading apostrophe.
    """
    text = io.TextIOWrapper(out, "utf-8", newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    count = 0
    for row in rows:
        writer.writerow([_cell(value) for value in row.values()])
        count += 1
    text.detach()  # flushes, and leaves the file open to who opened it
    return count


def _order() -> list[sa.ColumnElement[Any]]:
    return [bill_lines.c[column.name] for column in bill_lines.primary_key]


def _cell(value: Value) -> str:
    if isinstance(value, str):
        return harmless(value)
    if isinstance(value, Decimal):
        text = f"{value:f}"
        return text if "." in text else f"{text}.0"  # or readers take a column of whole numbers for integers
    return "" if value is None else _moment(value)


@lru_cache(maxsize=1024)
def _moment(value: datetime) -> str:
    return f"{value:%Y-%m-%dT%H:%M:%SZ}"
