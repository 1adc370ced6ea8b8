"""What exports share: the period, its bills line by line, its open days, and prices as exact decimals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, timezone, tzinfo
from decimal import Context, Decimal, Inexact
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing.errors import ExportError, LedgerError
from billing.tables import ON_ITS_BILL, bill_days, bill_lines, event_batches
from tallybook.calendar import ONE_DAY, day_interval, month_start, next_month
from tallybook.files import whole_file

_BATCH_ROWS = 2000  # how many lines of a period are in memory at once
_EXACT = Context(prec=60, traps=[Inexact])
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")


@dataclass(frozen=True)
class Period:
    """The days from `first` to `last`, both included."""

    first: date
    last: date

    @property
    def days(self) -> list[date]:
        """Every day of it."""
        return [self.first + n * ONE_DAY for n in range((self.last - self.first).days + 1)]

    def __str__(self) -> str:
        return f"{self.first} to {self.last}"


@dataclass(frozen=True)
class Exported:
    """What an export holds, what it leaves out because it has no amount, and which days are to come."""

    lines: int
    unrated_lines: int
    open_days: tuple[date, ...]


def period(first: date, last: date, zone: tzinfo, now: datetime | None = None) -> Period:
    """A period that has begun.

    Raises: ExportError: it ends before it begins (code period_reversed), or lies in the future
        (period_in_future).
    """
    if last < first:
        raise ExportError("period_reversed", f"the period ends on {last}, before it begins on {first}")
    if day_interval(first, zone).start > (now or datetime.now(timezone.utc)):
        raise ExportError("period_in_future", f"{first} has not begun")
    return Period(first, last)


def month_of(day: date, zone: tzinfo, now: datetime | None = None) -> Period:
    """The calendar month of a day. Raises: ExportError: see `period`."""
    return period(month_start(day), next_month(day) - ONE_DAY, zone, now)


def on_closed_bills(wanted: Period) -> list[sa.ColumnElement[bool]]:
    """The lines, joined to their `bill_days`, that are on closed bills of the period."""
    return [bill_lines.c.day.between(wanted.first, wanted.last), bill_days.c.state == "closed"]


def closed_lines(
    connection: Connection, wanted: Period, *order: sa.ColumnElement[Any]
) -> Iterator[sa.RowMapping]:
    """The lines on closed bills of a period, in this order, a few at a time."""
    query = (
        sa.select(bill_lines).join_from(bill_lines, bill_days, ON_ITS_BILL).where(*on_closed_bills(wanted))
    )
    yield from connection.execute(
        query.order_by(*order), execution_options={"yield_per": _BATCH_ROWS}
    ).mappings()


def check_closed(connection: Connection, wanted: Period) -> None:
    """Raises: ExportError: no line of the period is on a closed bill (code no_bills)."""
    found = (
        sa.select(bill_lines.c.day)
        .join_from(bill_lines, bill_days, ON_ITS_BILL)
        .where(*on_closed_bills(wanted))
    )
    if connection.execute(found.limit(1)).first() is None:
        raise ExportError("no_bills", f"there are no closed bills from {wanted}")


def ledger_currency(connection: Connection, *where: sa.ColumnElement[bool]) -> str | None:
    """The one currency of lines, joined to their `bill_days`; None when none has an amount.

    Raises: LedgerError: there are two, whose amounts can't be added (code currencies_mixed).
    """
    query = sa.select(bill_lines.c.currency).join_from(bill_lines, bill_days, ON_ITS_BILL).where(*where)
    found = sorted(connection.scalars(query.where(bill_lines.c.currency.is_not(None)).distinct()))
    if len(found) > 1:
        raise LedgerError("currencies_mixed", f"amounts in {' and '.join(found)} can't be added")
    return found[0] if found else None


def open_days(
    connection: Connection, wanted: Period, zone: tzinfo, now: datetime | None = None
) -> list[date]:
    """Days of a period whose bill is still to come: not closed, and either used or not over.

    A day that is over, without usage, owes nothing, whether somebody closed it or not.
    """
    moment = now or datetime.now(timezone.utc)
    inside = bill_days.c.day.between(wanted.first, wanted.last)
    closed = set(connection.scalars(sa.select(bill_days.c.day).where(inside, bill_days.c.state == "closed")))
    used = set(
        connection.scalars(
            sa.select(event_batches.c.day)
            .where(event_batches.c.day.between(wanted.first, wanted.last))
            .distinct()
        )
    ) | set(connection.scalars(sa.select(bill_days.c.day).where(inside)))
    return [
        day
        for day in wanted.days
        if day not in closed and (day in used or day_interval(day, zone).end > moment)
    ]


def told_days(days: list[date]) -> str:
    """Days in few words: `2026-11-03, 2026-11-05 to 2026-11-09`."""
    runs: list[list[date]] = []
    for day in days:
        if runs and runs[-1][-1] + ONE_DAY == day:
            runs[-1].append(day)
        else:
            runs.append([day])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def unit_price(line: Mapping[str, Any]) -> Fraction:
    """What one token of a rated line costs, less the discount, in its currency; exact."""
    return token_price(line["unit_price"], line["per_tokens"], line["discount_percent"])


@lru_cache(maxsize=1024)
def token_price(listed: str, per_tokens: int, discount_percent: str) -> Fraction:
    """What one token costs at a list price of so many tokens, less the discount; exact."""
    return Fraction(listed) * Fraction(100 - Decimal(discount_percent)) / (100 * per_tokens)


def exact_decimal(value: Fraction) -> Decimal:
    """The value as a decimal, every digit of it.

    Raises: ExportError: it has none, such as a third (code inexact_decimal).
    """
    try:
        quotient = _EXACT.divide(Decimal(value.numerator), Decimal(value.denominator))
    except Inexact:
        raise ExportError(
            "inexact_decimal", f"{value} has no end as a decimal: this format can't hold it exactly"
        ) from None
    return quotient


def harmless(text: str) -> str:
    """Text for a cell of a CSV file: a spreadsheet will not take it for a formula."""
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text


@contextmanager
def export_file(file: Path) -> Iterator[BinaryIO]:
    """The file of an export: whole at the end, and as it was on an error.

    Raises: ExportError: it can't be written (code export_unwritable).
    """
    try:
        with whole_file(file) as out:
            yield out
    except OSError as error:
        raise ExportError("export_unwritable", f"can't write {file}: {error.strerror or error}") from error
