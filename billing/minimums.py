"""Minimum charges: requests that cost less than the least their price takes are topped up to it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from datetime import date
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing.aggregates import KEY, events_are_dropped, whole
from billing.lines import Rater, minimum_line
from billing.money import charge
from billing.owing import CLOSED, waiting_batches
from billing.prices.tariff import Tariff
from billing.rating import MINIMUM, Subject, Terms, top_up
from billing.tables import COUNTS, bill_lines, usage_events


class Minimum(NamedTuple):
    """What one subject's requests of a day were, or are to be, topped up by, at one price."""

    requests: int
    amount_minor: int


_NOTHING = Minimum(0, 0)


def minimum_lines(
    connection: Connection, day: date, usage_day: date, tariff: Tariff, rater: Rater
) -> Iterator[tuple[Any, ...]]:
    """Rows of `bill_lines` for what requests of a day of usage lack to their minimum.

    What a request costs is not in the aggregates, so its event is read: of models with a minimum only. The
    amount is what the whole day lacks, rounded once a subject, less what closed bills hold of it.
    """
    billed: dict[tuple[Subject, str, str], Minimum] = {}
    batches: sa.ColumnElement[bool] = sa.true()
    if usage_day < day:
        if events_are_dropped(connection, usage_day):
            # What was billed can't be summed again: only what came since is.
            batches = usage_events.c.batch_id.in_(waiting_batches(usage_day))
        else:
            billed = billed_minimums(connection, usage_day)
    for subject, terms, owed in owed_minimums(connection, usage_day, tariff, rater, batches):
        before = billed.get((subject, terms.price_id, terms.discount), _NOTHING)
        if owed != before:
            more = (owed.requests - before.requests, owed.amount_minor - before.amount_minor)
            yield minimum_line(day, usage_day, subject, terms, *more)


def owed_minimums(
    connection: Connection,
    usage_day: date,
    tariff: Tariff,
    rater: Rater,
    batches: sa.ColumnElement[bool],
) -> Iterator[tuple[Subject, Terms, Minimum]]:
    """What the events in these batches lack to their minimum, by subject, in the users' order."""
    models = {p.model for p in tariff.prices if p.minimum is not None and p.effective_from <= usage_day}
    if not models:
        return
    columns = [usage_events.c[name] for name in (*KEY, *COUNTS)]
    query = (
        sa.select(*columns, sa.func.count())
        .where(usage_events.c.day == usage_day, usage_events.c.model.in_(models), batches)
        .group_by(*columns)
        .order_by(usage_events.c.user_id)
    )
    rows = connection.execute(query, execution_options={"yield_per": 5000})
    for _, of_user in groupby(rows, key=attrgetter("user_id")):
        requests: dict[Subject, list[tuple[int, int, int, int]]] = defaultdict(list)
        for row in of_user:
            prompt, cached, completion, count = row[len(KEY) :]
            requests[rater.subject(row[: len(KEY)])].append((prompt, cached, completion, count))
        for subject in sorted(requests):
            found = rater.terms(subject)
            if found is not None and found[0].price.minimum is not None:
                terms = found[0]
                topped_up = top_up(terms.price, terms.discount_percent, requests[subject])
                if topped_up.requests:
                    yield subject, terms, Minimum(topped_up.requests, charge(1, topped_up.lacking))


def billed_minimums(connection: Connection, usage_day: date) -> dict[tuple[Subject, str, str], Minimum]:
    """What closed bills hold for a day of usage, by subject, price version and discount."""
    key = [bill_lines.c[name] for name in (*KEY, "price_id", "discount_percent")]
    sums = [whole(sa.func.sum(bill_lines.c[name])) for name in ("quantity_requests", "amount_minor")]
    query = (
        sa.select(*key, *sums)
        .where(
            bill_lines.c.usage_day == usage_day,
            bill_lines.c.direction == MINIMUM,
            bill_lines.c.day.in_(CLOSED),
        )
        .group_by(*key)
    )
    return {
        (Subject(*subject), price_id, discount): Minimum(requests, amount)
        for *subject, price_id, discount, requests, amount in connection.execute(query)
    }
