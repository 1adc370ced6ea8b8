"""A bill as CSV: a row for each line, exact, and harmless when a spreadsheet opens it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing.exports.closed_bills import harmless
from billing.money import decimals, to_decimal
from billing.selection import EVERYBODY, Whose
from billing.tables import RATED_BY, SUBJECT, TERMS, bill_lines

_KEY = ("day", "usage_day", *SUBJECT, *RATED_BY, *TERMS)
_QUANTITIES = ("quantity_tokens", "quantity_requests", "tokens_before")
COLUMNS = (*_KEY, *_QUANTITIES, "unit_price", "per_tokens", "currency", "amount")
_NUMBERS = {*_QUANTITIES, "context_band", "tier", "discount_percent", "unit_price", "per_tokens", "amount"}


def read_lines(connection: Connection, day: date, whose: Whose = EVERYBODY) -> list[Mapping[str, Any]]:
    """The lines of a day's bills, as rows of `bill_lines`."""
    query = sa.select(bill_lines).where(bill_lines.c.day == day, *whose.where(bill_lines))
    return [dict(row) for row in connection.execute(query).mappings()]


def write_bill(lines: Iterable[Mapping[str, Any]], *, simulated: bool = False) -> bytes:
    """Write lines (rows of `bill_lines`) as CSV in UTF-8 with a byte order mark, which Excel needs.

    Columns are named as in the ledger, but for `amount`: `amount_minor` as a decimal of the currency,
    exact, and empty where a line is unrated; tiers are counted from 1. Rows are in the order of the
    lines' key, so the same lines make the same bytes. Text that a spreadsheet would take for a formula
    gets a leading apostrophe. Where usage is simulated, each row says so in a last column.
    """
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    mark = (("simulated", "true"),) if simulated else ()
    writer.writerow([*COLUMNS, *(name for name, _ in mark)])
    for line in sorted(lines, key=lambda line: [str(line[name]) for name in _KEY]):
        cells = {**line, "tier": line["tier"] + 1, "amount": _amount(line["amount_minor"], line["currency"])}
        writer.writerow([*(_cell(name, cells[name]) for name in COLUMNS), *(said for _, said in mark)])
    return out.getvalue().encode("utf-8-sig")


def _amount(minor: int | None, currency: str | None) -> str | None:
    if minor is None or currency is None:
        return None
    return f"{to_decimal(minor, currency):.{decimals(currency)}f}"


def _cell(name: str, value: Any) -> str:
    text = "" if value is None else str(value)
    return text if name in _NUMBERS else harmless(text)
