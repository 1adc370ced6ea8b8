"""What is to be billed: a day's own usage, and what closed days before it still owe."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from typing import Any, NamedTuple

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing.aggregates import KEY, whole
from billing.bulk import stream
from billing.prices.price_list import PriceList
from billing.rating import UNRATED
from billing.tables import (
    COUNTS,
    RATED_BY,
    audit_records,
    bill_days,
    bill_lines,
    bill_totals,
    event_batches,
    usage_events,
)
from tallybook.calendar import month_start, next_month

_ROWS_AT_ONCE = 5000
CLOSED = sa.select(bill_days.c.day).where(bill_days.c.state == "closed")


class Usage(NamedTuple):
    """Token sums of one subject to be billed; `was_unrated`: they are on closed bills, without a price."""

    user_id: str
    project: str
    department: str
    model: str
    model_version: str
    model_label: str
    latency_class: str
    context_band: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    was_unrated: bool


def owing_days(connection: Connection, day: date, price_list: PriceList) -> list[date]:
    """Closed days before `day` with events that came late, or with unrated tokens that have a price now."""
    late = sa.select(event_batches.c.day).where(event_batches.c.bill_day.is_(None), event_batches.c.day < day)
    return sorted(set(connection.scalars(late)) | _days_priced_since(connection, day, price_list))


def usage_to_bill(connection: Connection, usage_day: date, own: sa.Table | None) -> Iterator[list[Usage]]:
    """What a bill is to hold of a day of usage, in lists of whole users, in their order.

    `own`: the sums of the bill's own day (`billing.aggregates.sum_hours`); None: what an earlier day owes.
    """
    query = _owed_usage(usage_day) if own is None else _own_usage(own)
    stretch: list[Usage] = []
    for usage in map(Usage._make, stream(connection, query.order_by("user_id"))):
        if len(stretch) >= _ROWS_AT_ONCE and usage.user_id != stretch[-1].user_id:
            yield stretch
            stretch = []
        stretch.append(usage)
    if stretch:
        yield stretch


def _own_usage(own: sa.Table) -> sa.Select[Any]:
    return sa.select(*[own.c[name] for name in (*KEY, *COUNTS)], sa.false().label("was_unrated"))


def waiting_batches(usage_day: date) -> sa.Select[tuple[int]]:
    """Batches of events for a closed day that are on no bill yet."""
    return sa.select(event_batches.c.id).where(
        event_batches.c.day == usage_day, event_batches.c.bill_day.is_(None)
    )


def _owed_usage(usage_day: date) -> sa.CompoundSelect[tuple[object, ...]]:
    keys = [usage_events.c[name] for name in KEY]
    sums = [whole(sa.func.sum(usage_events.c[name])).label(name) for name in COUNTS]
    late = (
        sa.select(*keys, *sums, sa.false().label("was_unrated"))
        .where(usage_events.c.day == usage_day, usage_events.c.batch_id.in_(waiting_batches(usage_day)))
        .group_by(*keys)
    )
    line = bill_lines.c
    keys = [line[name] for name in KEY]
    sums = [
        whole(sa.func.sum(line.quantity_tokens).filter(line.direction.in_(directions))).label(name)
        for name, directions in zip(
            COUNTS, (("input", "cached_input"), ("cached_input",), ("output",)), strict=True
        )
    ]
    unrated = (
        sa.select(*keys, *sums, sa.true().label("was_unrated"))
        .where(line.usage_day == usage_day, line.price_id == UNRATED, line.day.in_(CLOSED))
        .group_by(*keys)
    )
    return late.union_all(unrated)


def looked_through(connection: Connection) -> date:
    """The last day whose unrated tokens, and those of all days before it, have no price for sure.

    Closing a day bills what earlier days have a price for, so what it left can have got one only by a later
    import.
    """
    record = audit_records.c
    told = sa.select(record.kind, record.body).where(record.kind.in_(("prices", "close")))
    last = date.min
    rows = connection.execute(told.order_by(record.number.desc()), execution_options={"yield_per": 100})
    for kind, body in rows:
        if kind == "prices":
            break
        last = max(last, date.fromisoformat(orjson.loads(body)["day"]))
    rows.close()
    return last


def _days_priced_since(connection: Connection, day: date, price_list: PriceList) -> set[date]:
    since = looked_through(connection)
    months = sa.select(bill_totals.c.month).where(
        bill_totals.c.price_id == UNRATED,
        bill_totals.c.quantity_tokens != 0,
        bill_totals.c.month >= month_start(since),
    )
    line, found = bill_lines.c, set()
    columns = [line[name] for name in ("usage_day", "model", "model_version", "model_label", *RATED_BY)]
    for month in sorted(set(connection.scalars(months))):
        query = (
            sa.select(*columns)
            .where(
                line.price_id == UNRATED,
                line.usage_day >= month,
                line.usage_day > since,
                line.usage_day < min(next_month(month), day),
                line.day.in_(CLOSED),
            )
            .group_by(*columns)
            # What each user has left is 0 or more, so nobody has any left where the sum is 0.
            .having(sa.func.sum(line.quantity_tokens) != 0)
        )
        for usage_day, model, version, label, latency_class, band in connection.execute(query):
            price = price_list.in_force(
                model, version, usage_day, model_label=label, latency_class=latency_class, context_band=band
            )
            if price is not None:
                found.add(usage_day)
    return found
