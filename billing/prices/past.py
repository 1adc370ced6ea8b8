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
    event_batches,
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
    if isinstance(terms, Price):
        where = [line.price_id != "", *_usage_of(connection, terms)]
    elif isinstance(terms, Discount):
        where = [line.price_id != "", *_equal((line.department, terms.department), (line.model, terms.model))]
    else:
        where = _equal((line.user_id, terms.user), (line.project, terms.project))
    query = _closed_usage_days(terms).where(*where)
    return connection.scalar(query.order_by(line.usage_day.desc()).limit(1))


def last_unknown_minimum(connection: Connection, price: Price) -> date | None:
    """The last day that has unrated usage which a price with a minimum is for, but no events any more.

    What its requests lack to the minimum can't be told; None: there is no such day.
    """
    line, batch = bill_lines.c, event_batches.c
    if price.minimum is None:
        return None
    dropped = sa.select(batch.day).where(batch.dropped_at.is_not(None))
    query = _closed_usage_days(price).where(
        line.price_id == "", line.usage_day.in_(dropped), *_usage_of(connection, price)
    )
    left = query.group_by(line.usage_day).having(sa.func.sum(line.quantity_tokens) != 0)
    return connection.scalar(left.order_by(line.usage_day.desc()).limit(1))


def _closed_usage_days(terms: Price | Discount | DepartmentRule) -> sa.Select[date]:
    """Days of usage of lines on closed bills, from the terms' first on."""
    query = sa.select(bill_lines.c.usage_day).join_from(bill_lines, bill_days, ON_ITS_BILL)
    return query.where(bill_days.c.state == "closed", bill_lines.c.usage_day >= terms.effective_from)


def _usage_of(connection: Connection, price: Price) -> list[sa.ColumnElement[bool]]:
    """Lines of usage that a price may be for, up to where a later one takes over."""
    line = bill_lines.c
    where = _equal(
        (line.model, price.model),
        (line.model_version, price.model_version),
        (line.model_label, price.model_label),
        (line.latency_class, price.latency_class),
    )
    where.append(line.context_band >= price.context_band)
    end = connection.scalar(_next_start(price))
    return where if end is None else [*where, line.usage_day < end]


def _equal(*wanted: tuple[sa.ColumnElement[str], str | None]) -> list[sa.ColumnElement[bool]]:
    return [column == value for column, value in wanted if value is not None]


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
