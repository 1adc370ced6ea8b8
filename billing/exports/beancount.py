"""A month's closed bills as a Beancount ledger, in which Beancount itself computes and proves the amounts.

Each bill of a user in a project is a transaction: the tokens leave `Income:Usage` at their price a token, the
amount as billed goes to `Assets:Receivable`, and what rounding made of it to `Equity:Rounding`, so that every
transaction balances to the last digit (the tolerance is 0). Tokens without a price are a commodity without a
price, kept in `Assets:Unrated`. At the month's end every balance is asserted, as the ledger's own sums.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import tzinfo
from decimal import Context, Decimal, Inexact
from itertools import groupby
from typing import Any, BinaryIO, TypeAlias

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing.errors import ExportError
from billing.exports.closed_bills import (
    Exported,
    Period,
    check_closed,
    closed_lines,
    exact_decimal,
    ledger_currency,
    on_closed_bills,
    open_days,
    unit_price,
)
from billing.money import to_decimal
from billing.rating import DIRECTIONS, MINIMUM, UNRATED
from billing.simulation.mark import TOLD, is_simulated
from billing.tables import ON_ITS_BILL, bill_days, bill_lines
from tallybook.calendar import next_month

# As Beancount computes: a product that this would round is refused here.
_BEANCOUNT = Context(prec=28, traps=[Inexact])
_BILL = ("day", "department", "project", "user_id")  # whose lines are a transaction
Balance: TypeAlias = "tuple[str, str, str, Decimal, str]"  # account, department, project, number, commodity
_ROUNDING = "Equity:Rounding"
_PLAIN = re.compile(r"[a-z0-9][a-z0-9-]*")
_KEPT = re.compile(r"[a-z0-9-]")


def write_beancount(connection: Connection, month: Period, zone: tzinfo, out: BinaryIO) -> Exported:
    """Write the closed bills of a month, a few lines in memory at a time.

    Raises: ExportError: there are none (code no_bills), or Beancount could not compute an amount exactly
        (inexact_decimal). LedgerError: amounts in two currencies (currencies_mixed).
    """
    check_closed(connection, month)
    currency = ledger_currency(connection, *on_closed_bills(month))
    balances = list(_balances(connection, month, currency))
    _write(out, _head(month, currency, balances, simulated=is_simulated(connection)))
    lines = 0
    ordered = closed_lines(connection, month, *_order())
    for key, bill in groupby(ordered, key=lambda line: tuple(line[name] for name in _BILL)):
        each = [dict(line) for line in bill]
        _write(out, _transaction(dict(zip(_BILL, key, strict=True)), each))
        lines += len(each)
    _write(out, _assertions(month, balances))
    return Exported(lines, 0, tuple(open_days(connection, month, zone)))


def account(kind: str, department: str, project: str) -> str:
    """The account of a project: `Assets:Receivable:Retail:Search`; other names are another account."""
    return f"{kind}:{component(department)}:{component(project)}"


def component(name: str) -> str:
    """A name as part of a Beancount account: `search` is Search; different names never look the same.

    In a name with anything but small letters, digits and hyphens, each of the others is written as its code
    point, after XX: `my_app` is XXmyU5F-app.
    """
    if _PLAIN.fullmatch(name):
        return name[0].upper() + name[1:]
    return "XX" + "".join(c if _KEPT.fullmatch(c) else f"U{ord(c):X}-" for c in name)


def quoted(text: str) -> str:
    """A Beancount string on one line."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + escaped.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t") + '"'


def commodity(direction: str, *, rated: bool = True) -> str:
    """The tokens of a direction: TOKENS.INPUT, or UNRATED.INPUT where they have no price."""
    return f"{'TOKENS' if rated else 'UNRATED'}.{direction.upper().replace('_', '-')}"


def _head(month: Period, currency: str | None, balances: list[Balance], *, simulated: bool) -> Iterator[str]:
    title = f"{'Simulated bills' if simulated else 'Bills'} of {month.first:%Y-%m}"
    yield f"; The closed bills of {month.first:%Y-%m}, written by Tallybook. bean-check proves them."
    if simulated:
        yield f"; {TOLD}"
    yield f'option "title" {quoted(title)}'
    if currency:
        yield f'option "operating_currency" {quoted(currency)}'
    yield 'option "tolerance_multiplier" "0"  ; to the last digit'
    yield ""
    for direction in DIRECTIONS:
        for rated in (True, False):
            yield f"{month.first} commodity {commodity(direction, rated=rated)}"
    yield ""
    yield f"{month.first} open {_ROUNDING}"
    for name, department, project in sorted({balance[:3] for balance in balances}):
        yield f"{month.first} open {name}"
        yield f"  department: {quoted(department)}"
        yield f"  project: {quoted(project)}"
    yield ""


def _transaction(bill: Mapping[str, Any], lines: list[dict[str, Any]]) -> Iterator[str]:
    whose = (bill["department"], bill["project"])
    narration = f"Bill of {bill['day']}"
    yield f"{bill['day']} * {quoted(bill['user_id'])} {quoted(narration)}"
    yield f"  department: {quoted(bill['department'])}"
    yield f"  project: {quoted(bill['project'])}"
    rated = [line for line in lines if line["price_id"] != UNRATED]
    if rated:
        currency = rated[0]["currency"]
        rest = to_decimal(sum(line["amount_minor"] for line in rated), currency)
        yield f"  {account('Assets:Receivable', *whose)}  {rest:f} {currency}"
    for line in lines:
        tokens = line["quantity_tokens"]
        if line["price_id"] == UNRATED:
            unit = commodity(line["direction"], rated=False)
            yield f"  {account('Assets:Unrated', *whose)}  {tokens} {unit}"
            yield f"  {account('Income:Usage', *whose)}  {-tokens} {unit}"
        elif line["direction"] == MINIMUM:
            amount = to_decimal(line["amount_minor"], currency)
            rest -= amount
            yield f"  {account('Income:Minimum', *whose)}  {-amount:f} {currency}"
        else:
            price = exact_decimal(unit_price(line))
            rest = _less(rest, tokens, price)
            unit = commodity(line["direction"])
            yield f"  {account('Income:Usage', *whose)}  {-tokens} {unit} @ {price:f} {currency}"
        yield from _terms(line)
    if rated and rest:
        yield f"  {_ROUNDING}  {-rest:f} {currency}"
    yield ""


def _terms(line: Mapping[str, Any]) -> Iterator[str]:
    """What a line is about, as metadata of its posting."""
    yield f"    usage_day: {line['usage_day']}"
    for name in ("model", "model_version", "model_label", "latency_class"):
        if line[name]:
            yield f"    {name}: {quoted(line[name])}"
    yield f"    context_band: {line['context_band']}"
    if line["price_id"] == UNRATED:
        return
    yield f"    price_version: {quoted(line['price_id'])}"
    yield f"    tier: {line['tier'] + 1}"
    yield f"    discount_percent: {Decimal(line['discount_percent']):f}"
    if line["direction"] == MINIMUM:
        yield f"    requests: {line['quantity_requests']}"
    else:
        yield f"    list_price: {Decimal(line['unit_price']):f}"
        yield f"    per_tokens: {line['per_tokens']}"
    yield f"    billed: {to_decimal(line['amount_minor'], line['currency']):f} {line['currency']}"


def _assertions(month: Period, balances: list[Balance]) -> Iterator[str]:
    """On the first of the next month, which for Beancount is the month's end."""
    for name, _, _, number, unit in balances:
        yield f"{next_month(month.first)} balance {name}  {number:f} {unit}"


def _balances(connection: Connection, month: Period, currency: str | None) -> Iterator[Balance]:
    """What each account holds at the month's end, as the database sums it."""
    keys = [bill_lines.c[name] for name in ("department", "project", "direction")]
    rated = (bill_lines.c.price_id != UNRATED).label("rated")
    sums = [
        sa.cast(sa.func.sum(bill_lines.c[name]), sa.BigInteger).label(name)
        for name in ("quantity_tokens", "amount_minor")
    ]
    query = sa.select(*keys, rated, *sums).join_from(bill_lines, bill_days, ON_ITS_BILL)
    rows = connection.execute(
        query.where(*on_closed_bills(month)).group_by(*keys, rated).order_by(*keys, rated)
    ).all()
    for whose, each in groupby(rows, key=lambda row: (row.department, row.project)):
        receivable = 0
        for row in each:
            tokens, unit = Decimal(row.quantity_tokens), commodity(row.direction, rated=bool(row.rated))
            if row.rated:
                receivable += row.amount_minor
            if row.direction == MINIMUM:
                amount = to_decimal(row.amount_minor, str(currency))
                yield account("Income:Minimum", *whose), *whose, -amount, str(currency)
                continue
            if not row.rated:
                yield account("Assets:Unrated", *whose), *whose, tokens, unit
            yield account("Income:Usage", *whose), *whose, -tokens, unit
        if currency:
            yield account("Assets:Receivable", *whose), *whose, to_decimal(receivable, currency), currency


def _less(rest: Decimal, tokens: int, price: Decimal) -> Decimal:
    """`rest` without what the tokens cost, computed as Beancount does."""
    try:
        return _BEANCOUNT.subtract(rest, _BEANCOUNT.multiply(Decimal(tokens), price))
    except Inexact:
        raise ExportError(
            "inexact_decimal", f"{tokens} tokens at {price} need more than the 28 digits of Beancount"
        ) from None


def _order() -> list[sa.ColumnElement[Any]]:
    first = [bill_lines.c[name] for name in _BILL]
    return [*first, *(column for column in bill_lines.primary_key if column.name not in _BILL)]


def _write(out: BinaryIO, lines: Iterable[str]) -> None:
    out.writelines(f"{line}\n".encode() for line in lines)
