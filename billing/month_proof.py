"""Proof of the months: all closed lines of a month come to the price of its tokens, rounded once."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from itertools import groupby
from typing import Any, NoReturn

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing.errors import ClosureError
from billing.money import charge
from billing.month_totals import PAYER, in_month, line_sums
from billing.owing import CLOSED
from billing.prices.book import kept_prices
from billing.prices.price_list import Price
from billing.rating import MINIMUM, UNRATED, Terms
from billing.tables import TERMS, bill_lines, bill_totals
from tallybook.calendar import month_start

_KEY = (*PAYER, *TERMS)
_SUMS = ("quantity_tokens", "amount_minor")


def prove_months(connection: Connection) -> int:
    """Prove every month's totals: they are the sums of its closed lines, and the price of the month's tokens.

    Returns: how many months there are.
    Raises: ClosureError: the first difference, named by month, user, project, department and direction.
    """
    months = sorted(set(connection.scalars(sa.select(bill_totals.c.month))) | _months_with_lines(connection))
    prices = kept_prices(connection)
    for month in months:
        _prove_sums(connection, month)
        _prove_amounts(connection, month, prices)
    return len(months)


def _months_with_lines(connection: Connection) -> set[date]:
    days = sa.select(bill_lines.c.usage_day).where(bill_lines.c.day.in_(CLOSED)).distinct()
    return {month_start(day) for day in connection.scalars(days)}


def _prove_sums(connection: Connection, month: date) -> None:
    """The database sums the lines, takes the totals away, and names what is left.

    Also totals of nothing must have lines, and no amount is another than 0: what is billed next is added.
    """
    lines = sa.and_(in_month(month), bill_lines.c.day.in_(CLOSED))
    summed = _signed(bill_lines, 1, *line_sums()).where(lines).group_by(*[bill_lines.c[n] for n in _KEY])
    kept = _signed(bill_totals, -1, *[bill_totals.c[name] for name in _SUMS])
    both = summed.union_all(kept.where(bill_totals.c.month == month)).subquery()
    key, side = [both.c[name] for name in _KEY], both.c.side
    left = [sa.cast(sa.func.sum(side * both.c[name]), sa.BigInteger) for name in _SUMS]
    alone, amounts = sa.func.sum(side), sa.func.count(both.c.amount_minor)
    query = sa.select(*key, *left, alone.label("alone"), amounts.label("amounts")).group_by(*key)
    differs = sa.or_(*(each != 0 for each in left), alone != 0, amounts == 1)
    for row in connection.execute(query.having(differs).order_by(*key).limit(1)):
        tokens, amount = row[len(key) : len(key) + len(left)]
        what = (
            f"against its totals, the closed lines come to {tokens:+} tokens and {amount or 0:+} minor units"
        )
        if row.alone:
            what += f"; there are no {'totals' if row.alone > 0 else 'lines'}"
        elif row.amounts == 1:
            what += "; only one of them has an amount"
        _differ(month, row, what)


def _signed(table: sa.Table, side: int, *sums: sa.ColumnElement[int]) -> sa.Select[Any]:
    return sa.select(*[table.c[name] for name in _KEY], *sums, sa.literal(side).label("side"))


def _prove_amounts(connection: Connection, month: date, prices: dict[str, Price]) -> None:
    """The tokens of each tier are those that the month's tokens put there, and cost what the totals say."""
    account = (*PAYER, "direction", "price_id", "discount_percent")
    columns = [bill_totals.c[name] for name in (*account, "tier", *_SUMS)]
    rated = (bill_totals.c.price_id != UNRATED, bill_totals.c.direction != MINIMUM)
    query = (
        sa.select(*columns).where(bill_totals.c.month == month, *rated).order_by(*columns[: len(account) + 1])
    )
    terms: dict[tuple[str, ...], Terms] = {}
    rows = connection.execute(query, execution_options={"yield_per": 5000})
    for key, group in groupby(rows, key=lambda row: tuple(row[: len(account)])):
        tiers = list(group)
        at = key[len(PAYER) :]
        if at not in terms:
            terms[at] = _terms(month, tiers[0], prices)
        tokens = sum(row.quantity_tokens for row in tiers)
        found = {row.tier: row.quantity_tokens for row in tiers}
        for tier, quantity in enumerate(terms[at].spread(tokens)):
            if found.pop(tier, 0) != quantity:
                _differ(month, tiers[0], f"of {tokens} tokens, {quantity} belong into tier {tier + 1}")
        if any(found.values()):
            _differ(month, tiers[0], "tokens are in tiers that the price does not have")
        for row in tiers:
            owed = charge(row.quantity_tokens, terms[at].exact[row.tier])
            if owed != row.amount_minor:
                _differ(
                    month,
                    row,
                    f"{row.quantity_tokens} tokens cost {owed} minor units, not {row.amount_minor}",
                )


def _terms(month: date, row: Any, prices: dict[str, Price]) -> Terms:
    price = prices.get(row.price_id)
    if price is None:
        _differ(month, row, f"the price version {row.price_id} is unknown")
    return Terms(price, row.direction, Decimal(row.discount_percent))


def _differ(month: date, row: Any, what: str) -> NoReturn:
    whose = f"user {row.user_id}, project {row.project}, department {row.department}, {row.direction}"
    raise ClosureError("closure_mismatch", f"{month:%Y-%m}, {whose}: {what}")
