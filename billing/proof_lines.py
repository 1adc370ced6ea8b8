"""Proof that lines hold what was used, at the terms in force: one pass over both, user by user."""

from __future__ import annotations

from datetime import date
from itertools import groupby
from operator import attrgetter
from typing import Any, NoReturn

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing.aggregates import whole
from billing.errors import ClosureError
from billing.lines import Rater
from billing.money import charge
from billing.owing import CLOSED, KEY, waiting_batches
from billing.rating import DIRECTIONS, MINIMUM, UNRATED, Subject, quantities
from billing.tables import COUNTS, bill_lines, event_batches, usage_events, usage_hours

_LINE = (
    "direction", "price_id", "tier", "discount_percent", "quantity_tokens", "tokens_before", "unit_price",
    "per_tokens", "currency", "amount_minor",
)  # fmt: skip


def prove_own_lines(connection: Connection, day: date, rater: Rater) -> None:
    """Prove that all closed lines for a day of usage, on whatever bill, hold its hours.

    Events that came late and are on no bill yet are left out of the hours.
    Raises: ClosureError: the first difference.
    """
    hours = _counts(usage_hours, usage_hours.c.day == day)
    rolled_up = waiting_batches(day).where(event_batches.c.rolled_up)
    waiting = _counts(
        usage_events, usage_events.c.day == day, usage_events.c.batch_id.in_(rolled_up), sign=-1
    )
    lines = sa.and_(bill_lines.c.usage_day == day, bill_lines.c.day.in_(CLOSED))
    _prove(connection, day, rater, [hours, waiting], lines)


def prove_corrections(connection: Connection, day: date, usage_day: date, rater: Rater) -> None:
    """Prove that the lines of a bill for an earlier day hold the events that came late for it.

    Raises: ClosureError: the first difference.
    """
    batches = sa.select(event_batches.c.id).where(
        event_batches.c.day == usage_day, event_batches.c.bill_day == day
    )
    late = _counts(usage_events, usage_events.c.day == usage_day, usage_events.c.batch_id.in_(batches))
    lines = sa.and_(bill_lines.c.day == day, bill_lines.c.usage_day == usage_day)
    _prove(connection, usage_day, rater, [late], lines)


def differ(day: date, subject: Subject, what: str) -> NoReturn:
    """Raise the difference that was found."""
    whose = f"user {subject.user_id}, project {subject.project}, {subject.model} {subject.model_version}"
    raise ClosureError("closure_mismatch", f"{day}, {whose}: {what}")


def _counts(table: sa.Table, *where: sa.ColumnElement[bool], sign: int = 1) -> sa.Select[Any]:
    """Token sums by subject, beside which the columns of lines are null."""
    keys = [table.c[name] for name in KEY]
    counts = [(sign * whole(sa.func.sum(table.c[name]))).label(name) for name in COUNTS]
    blank = [sa.cast(sa.null(), bill_lines.c[name].type).label(name) for name in _LINE]
    return sa.select(*keys, *counts, *blank).where(*where).group_by(*keys)


def _prove(
    connection: Connection,
    usage_day: date,
    rater: Rater,
    used: list[sa.Select[Any]],
    which: sa.ColumnElement[bool],
) -> None:
    keys, columns = ([bill_lines.c[name] for name in names] for names in (KEY, _LINE))
    no_counts = [sa.literal(0, sa.BigInteger).label(name) for name in COUNTS]
    lines = sa.select(*keys, *no_counts, *columns).where(which)
    query = sa.union_all(*used, lines).order_by("user_id")
    rows = connection.execute(query, execution_options={"yield_per": 5000})
    for _, of_user in groupby(rows, key=attrgetter("user_id")):
        told: dict[tuple[Subject, str], int] = {}
        billed: dict[tuple[Subject, str], int] = {}
        for row in of_user:
            key, direction = row[: len(KEY)], row.direction
            if direction is None:
                subject = rater.subject(key)
                counts = quantities(*row[len(KEY) : len(KEY) + len(COUNTS)])
                for name, tokens in zip(DIRECTIONS, counts, strict=True):
                    told[subject, name] = told.get((subject, name), 0) + tokens
            else:
                subject = Subject(*key)
                billed[subject, direction] = billed.get((subject, direction), 0) + row.quantity_tokens
                if row.price_id != UNRATED:
                    _check_terms(usage_day, rater, subject, row)
        for subject, direction in sorted(told.keys() | billed.keys()):
            tokens, on_lines = told.get((subject, direction), 0), billed.get((subject, direction), 0)
            if tokens != on_lines:
                differ(usage_day, subject, f"{tokens} {direction} tokens were used, the lines {on_lines}")


def _check_terms(usage_day: date, rater: Rater, subject: Subject, line: Any) -> None:
    """A line states the terms of the price in force, and comes to what these make of its tokens."""
    direction, minimum = line.direction, line.direction == MINIMUM
    found = rater.terms(subject)
    if found is None:
        differ(
            usage_day,
            subject,
            f"{direction} lines are at price version {line.price_id}, and none is in force",
        )
    terms = found[0 if minimum else DIRECTIONS.index(direction)]
    if (line.price_id, line.discount_percent) != (terms.price_id, terms.discount):
        differ(
            usage_day,
            subject,
            f"{direction} lines are at price version {line.price_id} less {line.discount_percent}%; "
            f"{terms.price_id} less {terms.discount}% is in force",
        )
    price = terms.price
    tiers = (str(price.minimum),) if minimum else terms.unit_prices
    unit_price = tiers[line.tier] if line.tier < len(tiers) else None
    said = (unit_price, None if minimum else price.per_tokens, price.currency)
    if (line.unit_price, line.per_tokens, line.currency) != said:
        differ(usage_day, subject, f"{direction} lines state other terms than price version {line.price_id}")
    if minimum:
        return
    exact, before = terms.exact[line.tier], line.tokens_before
    owed = charge(before + line.quantity_tokens, exact) - charge(before, exact)
    if owed != line.amount_minor:
        differ(
            usage_day,
            subject,
            f"{line.quantity_tokens} {direction} tokens after {before} cost {owed} minor units, the lines "
            f"say {line.amount_minor}",
        )
