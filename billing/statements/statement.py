"""The monthly statement: what the bills of a calendar month come to, and how that was rounded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime, tzinfo
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing.errors import ExportError
from billing.exports.closed_bills import Period, ledger_currency, month_of, open_days, unit_price
from billing.money import charge, exact_price
from billing.rating import MINIMUM, UNRATED
from billing.selection import Selection
from billing.simulation.mark import is_simulated
from billing.tables import RATED_BY, bill_lines
from tallybook.calendar import month_start

_KEY = ("model", "model_version", "direction", "tier", "price_id", "discount_percent")
_TERMS = ("unit_price", "per_tokens", "currency")
# What is rounded once a month.
_ROUNDED = ("user_id", "project", "department", "direction", "price_id", "tier", "discount_percent")
_SEARCHED = 10_000  # among how many lines an example of a carry is looked for


class Row(NamedTuple):
    """Lines of one month of usage, of one model version, direction, tier, price and discount, summed.

    `unit_price` is the list price of `per_tokens` tokens, before the discount; amounts are in minor units.
    Without a price (unrated) it has no amount.
    """

    usage_month: date
    model: str
    model_version: str
    direction: str
    tier: int
    price_id: str
    discount_percent: str
    unit_price: str | None
    per_tokens: int | None
    currency: str | None
    quantity_tokens: int
    quantity_requests: int
    amount_minor: int | None


class Part(NamedTuple):
    """What one project of one department comes to, corrections of earlier months included."""

    department: str
    project: str
    quantity_tokens: int
    unrated_tokens: int
    amount_minor: int


class Unrated(NamedTuple):
    """Tokens on the month's bills without a price; those that got one since they were billed don't count."""

    department: str
    project: str
    model: str
    model_version: str
    tokens: int


class Carry(NamedTuple):
    """A line whose amount is not its own tokens at their price, rounded, because of those before it."""

    line: sa.RowMapping
    tokens_to_date: int  # of the month, with the line's
    exact_to_date: Fraction  # what those cost before rounding, in the currency
    before_minor: int  # what those before the line come to
    alone_minor: int


class Rounding(NamedTuple):
    """How the amounts of the month's own rated tokens were rounded: `sums` times, once each."""

    sums: int
    exact: Fraction  # what the tokens cost before rounding, in the currency
    billed_minor: int
    carry: Carry | None


@dataclass(frozen=True)
class Statement:
    """A calendar month of somebody's bills; provisional while `open_days` are still to be billed."""

    month: Period
    selection: Selection
    currency: str | None
    rows: tuple[Row, ...]
    corrections: tuple[Row, ...]
    parts: tuple[Part, ...]
    unrated: tuple[Unrated, ...]
    rounding: Rounding
    open_days: tuple[date, ...]
    simulated: bool = False

    @property
    def id(self) -> str | None:
        """Its name as an invoice, which only a whole department's statement is."""
        department = self.selection.department
        whole = department is not None and self.selection == Selection(department=department)
        return statement_id(self.month.first, str(department)) if whole else None

    @property
    def amount_minor(self) -> int:
        """What is owed for the month: its own usage and the corrections of earlier months."""
        return sum(part.amount_minor for part in self.parts)


def statement_id(day: date, department: str) -> str:
    """The statement that a department's bill of this day is on: `2026-11/retail`."""
    return f"{day:%Y-%m}/{department}"


def statement(
    connection: Connection,
    day: date,
    zone: tzinfo,
    selection: Selection | None = None,
    now: datetime | None = None,
) -> Statement:
    """Sum the bills of the calendar month that holds `day`, drafts included.

    Raises: ExportError: the month lies in the future (code period_in_future), or has no bill of the
        selection (no_bills). LedgerError: amounts in two currencies (currencies_mixed).
    """
    selection = selection or Selection()
    month = month_of(day, zone, now)
    where = [bill_lines.c.day.between(month.first, month.last), *selection.where(bill_lines)]
    rows = _rows(connection, where)
    if not rows:
        raise ExportError("no_bills", f"there are no bills of {selection} in {month.first:%Y-%m}")
    # Nothing is left where a volume tier was passed, or where unrated tokens got a price.
    rows = tuple(row for row in rows if row.quantity_tokens or row.quantity_requests or row.amount_minor)
    own = tuple(row for row in rows if row.usage_month == month.first)
    unrated = _unrated(connection, where)
    return Statement(
        month,
        selection,
        ledger_currency(connection, *where),
        own,
        tuple(row for row in rows if row.usage_month != month.first),
        _parts(connection, where, unrated),
        unrated,
        _rounding(connection, month, where, own),
        tuple(open_days(connection, month, zone, now)),
        is_simulated(connection),
    )


def _rows(connection: Connection, where: list[sa.ColumnElement[bool]]) -> tuple[Row, ...]:
    keys = [bill_lines.c[name] for name in ("usage_day", *_KEY, *_TERMS)]
    sums = [_whole_sum(name) for name in ("quantity_tokens", "quantity_requests", "amount_minor")]
    found: dict[tuple[Any, ...], list[int | None]] = {}
    for line in connection.execute(sa.select(*keys, *sums).where(*where).group_by(*keys)):
        key = (month_start(line.usage_day), *line[1 : len(keys)])
        kept = found.setdefault(key, [0, 0, 0])
        for place, value in enumerate(line[len(keys) :]):
            kept[place] = None if value is None else (kept[place] or 0) + value
    rows = (Row(*key, *values) for key, values in found.items())
    return tuple(sorted(rows, key=lambda row: row[: 1 + len(_KEY)]))


def _parts(
    connection: Connection, where: list[sa.ColumnElement[bool]], unrated: Iterable[Unrated]
) -> tuple[Part, ...]:
    keys = (bill_lines.c.department, bill_lines.c.project)
    sums = (_whole_sum("quantity_tokens"), sa.func.coalesce(_whole_sum("amount_minor"), 0))
    without: dict[tuple[str, str], int] = defaultdict(int)
    for each in unrated:
        without[each.department, each.project] += each.tokens
    rows = connection.execute(sa.select(*keys, *sums).where(*where).group_by(*keys))
    return tuple(
        sorted(
            Part(department, project, tokens, without[department, project], minor)
            for department, project, tokens, minor in rows
        )
    )


def _unrated(connection: Connection, where: list[sa.ColumnElement[bool]]) -> tuple[Unrated, ...]:
    whose = [bill_lines.c[name] for name in Unrated._fields[:-1]]
    # A price is for all of one of these or for none: of which some are taken back, none are left.
    priced_by = [bill_lines.c[name] for name in ("usage_day", "model_label", *RATED_BY)]
    query: sa.Select[Any] = sa.select(*whose, _whole_sum("quantity_tokens"))
    query = query.where(*where, bill_lines.c.price_id == UNRATED).group_by(*whose, *priced_by)
    found: dict[tuple[str, str, str, str], int] = defaultdict(int)
    for department, project, model, version, tokens in connection.execute(query):
        found[department, project, model, version] += max(tokens, 0)
    return tuple(Unrated(*key, tokens) for key, tokens in sorted(found.items()) if tokens)


def _rounding(
    connection: Connection, month: Period, where: list[sa.ColumnElement[bool]], own: tuple[Row, ...]
) -> Rounding:
    of_tokens = [
        *where,
        bill_lines.c.usage_day >= month.first,
        bill_lines.c.price_id != UNRATED,
        bill_lines.c.direction != MINIMUM,
    ]
    sums = sa.select(*[bill_lines.c[name] for name in _ROUNDED]).where(*of_tokens).distinct().subquery()
    rated = [row for row in own if row.price_id != UNRATED and row.direction != MINIMUM]
    return Rounding(
        connection.execute(sa.select(sa.func.count()).select_from(sums)).scalar_one(),
        sum((row.quantity_tokens * unit_price(row._asdict()) for row in rated), Fraction(0)),
        sum(row.amount_minor or 0 for row in rated),
        _carry(connection, of_tokens),
    )


def _carry(connection: Connection, where: list[sa.ColumnElement[bool]]) -> Carry | None:
    """The first of the month's lines that shows how what was rounded away is carried on."""
    order = [bill_lines.c[column.name] for column in bill_lines.primary_key]
    query = sa.select(bill_lines).where(*where).order_by(*order).limit(_SEARCHED)
    for line in connection.execute(query).mappings():
        discount = Decimal(line["discount_percent"])
        price = exact_price(Decimal(line["unit_price"]), line["per_tokens"], line["currency"], discount)
        alone = charge(line["quantity_tokens"], price)
        if alone != line["amount_minor"]:
            to_date = line["tokens_before"] + line["quantity_tokens"]
            before = charge(line["tokens_before"], price)
            return Carry(line, to_date, to_date * unit_price(dict(line)), before, alone)
    return None


def _whole_sum(name: str) -> sa.ColumnElement[int]:
    return sa.cast(sa.func.sum(bill_lines.c[name]), sa.BigInteger).label(name)
