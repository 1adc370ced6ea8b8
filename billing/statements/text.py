"""A monthly statement as text in 100 columns, and as CSV."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import groupby

from billing.exports.closed_bills import harmless, told_days
from billing.money import decimals, format_amount, to_decimal
from billing.money import shown as rounded
from billing.rating import MINIMUM
from billing.reports.words import shown
from billing.simulation.mark import TOLD
from billing.statements.statement import Carry, Part, Row, Statement

COLUMNS = (
    "month", "state", "usage_month", "model", "model_version", "direction", "tier", "price_id",
    "quantity_tokens", "quantity_requests", "unit_price", "per_tokens", "discount_percent", "currency",
    "amount",
)  # fmt: skip
_WIDTH = 100
_MORE_DECIMALS = 6  # of an amount before rounding, beyond the currency's


def as_csv(told: Statement) -> bytes:
    """A row for each row of the statement, in UTF-8 with a byte order mark, which Excel needs.

    `usage_month` is an earlier month on corrections; the amounts of all rows sum to the statement's.
    An unrated row has no amount. Tiers are counted from 1.
    """
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(COLUMNS)
    for row in (*told.rows, *told.corrections):
        values = row._asdict() | {
            "month": f"{told.month.first:%Y-%m}",
            "state": "simulated" if told.simulated else "provisional" if told.open_days else "final",
            "usage_month": f"{row.usage_month:%Y-%m}",
            "tier": row.tier + 1,
            "model": harmless(row.model),
            "model_version": harmless(row.model_version),
            "amount": None if row.amount_minor is None else _plain(row.amount_minor, row.currency),
        }
        writer.writerow(["" if values[name] is None else values[name] for name in COLUMNS])
    return out.getvalue().encode("utf-8-sig")


def as_text(told: Statement) -> str:
    """For people: what was used at which price, corrections apart, who owes what, how it was rounded."""
    name = f"{told.id} ({told.month})" if told.id else f"{told.month.first:%Y-%m} ({told.month})"
    state = f"provisional: still to be billed are {told_days(list(told.open_days))}"
    lines = [
        *_wrapped(f"Statement  {shown(name)}"),
        *_wrapped(f"Bills of   {shown(str(told.selection))}"),
        *([f"Note       {TOLD}"] if told.simulated else []),
        *_wrapped(
            f"State      {state if told.open_days else 'final: every used day is closed'}", "           "
        ),
        *_table("Usage of the month", told.rows),
        *_table("Corrections of earlier months", told.corrections),
        *_totals(told),
        *_rounding(told),
    ]
    return "\n".join(lines) + "\n"


def _table(title: str, rows: Iterable[Row]) -> Iterator[str]:
    rows = list(rows)
    if not rows:
        return
    yield from (
        "",
        title,
        _cells("direction", "tier", "price version", "tokens", "unit price", "discount", "amount"),
    )
    for (month, model, version), each in groupby(rows, key=lambda row: row[:3]):
        when = "" if title.startswith("Usage") else f"usage of {month:%Y-%m}: "
        yield from _wrapped(f"{when}{shown(model)} {shown(version)}")
        yield from (_row(row) for row in each)
    amounts = [row.amount_minor for row in rows if row.amount_minor is not None]
    currency = next((row.currency for row in rows if row.currency), None)
    if currency:
        yield f"{'sum ' + format_amount(sum(amounts), currency):>{_WIDTH}}"


def _row(row: Row) -> str:
    if row.amount_minor is None or row.currency is None:
        price, amount = "", "unrated"
    else:
        price = f"{row.unit_price}/" + ("request" if row.per_tokens is None else f"{row.per_tokens:,}")
        amount = format_amount(row.amount_minor, row.currency)
    count = f"{row.quantity_requests:,} requests" if row.direction == MINIMUM else f"{row.quantity_tokens:,}"
    discount = "" if row.discount_percent == "0" else f"{row.discount_percent}%"
    direction = row.direction.replace("_", " ")
    return _cells(direction, str(row.tier + 1), row.price_id or "none", count, price, discount, amount)


def _cells(
    direction: str, tier: str, price: str, count: str, unit_price: str, discount: str, amount: str
) -> str:
    terms = f"{unit_price} {f'{discount} {amount:>15}':>24}"  # a long one takes the room of those before it
    return f"  {direction:<12} {tier:>4} {price:<16} {count:>17} {terms:>45}"


def _totals(told: Statement) -> Iterator[str]:
    yield from ("", "Departments and projects, corrections included")
    for department, parts in groupby(told.parts, key=lambda part: part.department):
        each = list(parts)
        yield _total(told, shown(department), each)
        for part in each:
            yield _total(told, f"  {shown(part.project)}", [part])
    yield _total(told, "Total", told.parts)


def _total(told: Statement, name: str, parts: Iterable[Part]) -> str:
    parts = list(parts)
    tokens, unrated = sum(p.quantity_tokens for p in parts), sum(p.unrated_tokens for p in parts)
    count = f"{tokens:,} tokens" + (f" ({unrated:,} unrated)" if unrated else "")
    amount = "" if told.currency is None else format_amount(sum(p.amount_minor for p in parts), told.currency)
    figures = f"{count:>52} {amount:>15}"
    if len(name) + len(figures) < _WIDTH:
        return f"{name:<{_WIDTH - len(figures)}}{figures}"
    return "\n".join([*_wrapped(name), f"{figures:>{_WIDTH}}"])


def _rounding(told: Statement) -> Iterator[str]:
    found, currency = told.rounding, told.currency
    if currency is None or not found.sums:
        return
    minor = format_amount(1, currency)
    yield from ("", "How this was rounded")
    yield from _wrapped(
        "An amount is rounded once: on all tokens that a user used in a project at a price since the month "
        "began. A daily bill has what its tokens add to that. So a single line may be "
        f"{minor} off its own tokens times the price: what is rounded away on one day is carried to the "
        "next, and the lines of a month sum to the price of the month's tokens."
    )
    if found.carry:
        yield from _wrapped(_example(found.carry, currency))
    times = f"{found.sums:,} sums, each rounded once," if found.sums > 1 else "1 sum, rounded once,"
    yield from _wrapped(
        f"The tokens above cost {_unrounded(found.exact, currency)} before rounding. They are {times} and "
        f"come to {format_amount(found.billed_minor, currency)}: the difference is at most {found.sums:,} "
        f"times half of {minor}."
    )


def _example(carry: Carry, currency: str) -> str:
    line = carry.line
    earlier, to_date = format_amount(carry.before_minor, currency), carry.tokens_to_date
    return (
        f"Here, {shown(line['user_id'])} in {shown(line['project'])} used {line['quantity_tokens']:,} "
        f"{line['direction'].replace('_', ' ')} tokens on {line['usage_day']}. Alone they would cost "
        f"{format_amount(carry.alone_minor, currency)}. With them the month stood at {to_date:,} tokens, "
        f"{_unrounded(carry.exact_to_date, currency)}, of which {earlier} were billed before, so the line "
        f"says {format_amount(line['amount_minor'], currency)}."
    )


def _unrounded(amount: Fraction, currency: str) -> str:
    """Every digit of the amount, or, where these are many, so many that the rest does not matter."""
    places = decimals(currency) + _MORE_DECIMALS
    value = rounded(amount, places)
    return f"{'' if value == amount else 'about '}{value.normalize():,f} {currency}"


def _plain(minor: int, currency: str | None) -> str:
    return "" if currency is None else f"{to_decimal(minor, currency):f}"


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, _WIDTH, subsequent_indent=indent)
