"""The past that prices, discounts and department rules must not change: what closed bills were made by."""

from __future__ import annotations

from datetime import date

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing.prices.departments import DepartmentRule
from billing.prices.discounts import Discount
from billing.prices.price_list import Price
from billing.tables import (
    ON_ITS_BILL,
    bill_days,
    bill_lines,
    bill_totals,
    prices,
    wallet_entries,
)


def is_billed(connection: Connection, terms: Price | Discount | DepartmentRule) -> bool:
    """Whether closed bills may have been made by these terms, so that they can't be withdrawn."""
    if isinstance(terms, Price):
        return bool(connection.scalar(sa.select(_has_lines(terms.id))))
    return last_billed(connection, terms) is not None


def last_billed(connection: Connection, terms: Price | Discount | DepartmentRule) -> date | None:
    """The last day, from the terms' first on, whose usage of what they are for is billed; None: none is.

    Unrated usage is not billed: it may get its price, at the discount of its day.
    """
    line = bill_lines.c
    wanted: list[tuple[sa.ColumnElement[str], str | None]]
    if isinstance(terms, Price):
        wanted = [
            (line.model, terms.model),
            (line.model_version, terms.model_version),
            (line.model_label, terms.model_label),
            (line.latency_class, terms.latency_class),
        ]
        where = [line.price_id != "", line.context_band >= terms.context_band]
        end = connection.scalar(_next_start(terms))
        if end is not None:
            where.append(line.usage_day < end)
    elif isinstance(terms, Discount):
        wanted = [(line.department, terms.department), (line.model, terms.model)]
        where = [line.price_id != ""]
    else:
        wanted = [(line.user_id, terms.user), (line.project, terms.project)]
        where = []
    where += [column == value for column, value in wanted if value is not None]
    query = (
        sa.select(line.usage_day)
        .join_from(bill_lines, bill_days, ON_ITS_BILL)
        .where(bill_days.c.state == "closed", line.usage_day >= terms.effective_from, *where)
    )
    return connection.scalar(query.order_by(line.usage_day.desc()).limit(1))


def _next_start(price: Price) -> sa.Select[tuple[date | None]]:
    """The day from which a later price for the same target holds instead, all of its context bands."""
    target = ("model", "model_version", "model_label", "latency_class")
    return sa.select(sa.func.min(prices.c.effective_from)).where(
        prices.c.withdrawn_at.is_(None),
        prices.c.effective_from > price.effective_from,
        *(prices.c[name].is_not_distinct_from(getattr(price, name)) for name in target),
    )


def kept_currencies(connection: Connection) -> set[str]:
    """In which currencies there are closed bills, or credit that bills are charged to."""
    billed = sa.select(prices.c.currency).where(_has_lines(prices.c.id))
    return set(connection.scalars(billed.union(sa.select(wallet_entries.c.currency))))


def _has_lines(price_id: sa.ColumnElement[str] | str) -> sa.ColumnElement[bool]:
    return sa.exists().where(bill_totals.c.price_id == price_id)
