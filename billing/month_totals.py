"""The running totals of a calendar month: what its closed lines come to, where the next line goes on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from datetime import date
from typing import NamedTuple, TypeAlias

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing.aggregates import whole
from billing.ledger import insert
from billing.rating import MINIMUM, UNRATED
from billing.tables import TERMS, bill_lines, bill_totals
from tallybook.calendar import month_start, next_month

PAYER = ("user_id", "project", "department")


class Account(NamedTuple):
    """Whose tokens of a month are counted together: into tiers, and up to the next whole minor unit."""

    user_id: str
    project: str
    department: str
    direction: str
    price_id: str
    discount_percent: str


TokensByAccount: TypeAlias = "defaultdict[tuple[str, ...], int]"  # keys as Account has them


def tokens_before(
    connection: Connection,
    day: date,
    usage_day: date,
    drafted: Collection[date],
    users: tuple[str, str],
) -> TokensByAccount:
    """Rated tokens that the month of `usage_day` has before the next line of a draft.

    Args:
        day: whose bill is drafted.
        drafted: days of usage that the draft has lines for by now.
        users: the first and the last user, in the database's order.
    """
    month = month_start(usage_day)
    found: TokensByAccount = defaultdict(int)
    sources = [(bill_totals, [bill_totals.c.month == month])]
    same_month = [each for each in drafted if month_start(each) == month]
    if same_month:
        sources.append((bill_lines, [bill_lines.c.day == day, bill_lines.c.usage_day.in_(same_month)]))
    for table, where in sources:
        query = sa.select(*[table.c[name] for name in Account._fields], table.c.quantity_tokens)
        rated = (table.c.user_id.between(*users), table.c.price_id != UNRATED, table.c.direction != MINIMUM)
        for *account, quantity in connection.execute(query.where(*where, *rated)):
            found[Account(*account)] += quantity
    return found


def add_closed_lines(connection: Connection, day: date) -> None:
    """Add the lines of a bill to the totals of their months."""
    key = [bill_lines.c[name] for name in (*PAYER, *TERMS)]
    usage_days = connection.scalars(
        sa.select(bill_lines.c.usage_day).where(bill_lines.c.day == day).distinct()
    )
    for month in sorted({month_start(each) for each in usage_days}):
        sums = (
            sa.select(sa.literal(month, sa.Date), *key, *line_sums())
            .where(bill_lines.c.day == day, in_month(month))
            .group_by(*key)
        )
        names = ("month", *PAYER, *TERMS, "quantity_tokens", "amount_minor")
        statement = insert(connection, bill_totals).from_select(names, sums)
        added = {name: bill_totals.c[name] + statement.excluded[name] for name in names[-2:]}
        connection.execute(
            statement.on_conflict_do_update(index_elements=["month", *PAYER, *TERMS], set_=added)
        )


def in_month(month: date) -> sa.ColumnElement[bool]:
    """Lines for usage of this month."""
    return sa.and_(bill_lines.c.usage_day >= month, bill_lines.c.usage_day < next_month(month))


def line_sums() -> list[sa.ColumnElement[int]]:
    """Tokens and amount of lines; unrated ones have no amount."""
    amount = sa.cast(sa.func.sum(bill_lines.c.amount_minor), sa.BigInteger)
    return [
        whole(sa.func.sum(bill_lines.c.quantity_tokens)).label("quantity_tokens"),
        amount.label("amount_minor"),
    ]
