"""The audit: recompute what the chain has sealed, and walk one request to its bill."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing import chain
from billing.closure import prove
from billing.errors import AuditError
from billing.merkle import inclusion_path, root_from_path
from billing.prices import kept_prices
from billing.tables import SUBJECT, bill_days, bill_lines, usage_events


@dataclass(frozen=True)
class Verified:
    """What an audit went through and found unaltered; `head` vouches for all of it."""

    records: int
    days: int
    events: int
    head: str


@dataclass(frozen=True)
class Trace:
    """One request from its event to its bill: columns as the ledger has them."""

    event: dict[str, Any]
    lines: list[dict[str, Any]]
    sealed_by: int | None  # number of the audit record, None while its bill is open
    index: int | None  # place among the events of its bill
    path: list[str]  # sibling hashes up to the sealed root


def verify(connection: Connection, progress: Callable[[date], None] = lambda day: None) -> Verified:
    """Recompute every closed bill and compare it with what was sealed when it was closed.

    Raises: AuditError: the first difference, named by record, day or event. ClosureError: the numbers of
        a bill disagree, named by day, subject and direction.
    """
    sealed: dict[str, dict[str, Any]] = {}
    terms: dict[str, dict[str, Any]] = {}
    count = events = 0
    for number, kind, body in chain.records(connection):
        count = number
        if kind == "close":
            sealed[body["day"]] = body
        elif kind == "prices":
            terms |= {price["id"]: price for price in body["imported"]}
    _verify_prices(connection, terms)
    closed = connection.scalars(
        sa.select(bill_days.c.day).where(bill_days.c.state == "closed").order_by(bill_days.c.day)
    ).all()
    for odd in sorted({day.isoformat() for day in closed} ^ sealed.keys()):
        wrong = "was sealed, but is not closed" if odd in sealed else "is closed, but was never sealed"
        raise AuditError("day_altered", f"{odd} {wrong}")
    for day in closed:
        progress(day)
        prove(connection, day)
        found, told = asdict(chain.seal(connection, day)), sealed[day.isoformat()]
        for name, value in found.items():
            if told[name] != value:
                raise AuditError("day_altered", f"{day}: {name} is {value}, but {told[name]} was sealed")
        events += found["events"]
    return Verified(count, len(closed), events, chain.head(connection))


def trace(connection: Connection, request_id: str) -> Trace:
    """Walk a request to its bill. Raises: AuditError: no such event, or its seal does not hold it."""
    row = connection.execute(sa.select(usage_events).where(usage_events.c.id == request_id)).one_or_none()
    if row is None:
        raise AuditError("unknown_request", f"the ledger has no event {request_id}")
    event = dict(row._mapping)
    if event["bill_day"] is None:
        return Trace(event, [], None, None, [])
    on_its_bill = [bill_lines.c[name] == event[name] for name in SUBJECT]
    query = sa.select(bill_lines).where(
        bill_lines.c.day == event["bill_day"], bill_lines.c.usage_day == event["day"], *on_its_bill
    )
    lines = [dict(line._mapping) for line in connection.execute(query.order_by(bill_lines.c.direction))]
    for number, kind, body in chain.records(connection):
        if kind == "close" and body["day"] == event["bill_day"].isoformat():
            leaves = dict(chain.event_leaves(connection, event["bill_day"]))
            index = list(leaves).index(request_id)
            path = inclusion_path(list(leaves.values()), index)
            root = root_from_path(leaves[request_id], index, body["events"], path)
            if root is None or root.hex() != body["events_root"]:
                raise AuditError("day_altered", f"the seal of {event['bill_day']} does not hold {request_id}")
            return Trace(event, lines, number, index, [step.hex() for step in path])
    return Trace(event, lines, None, None, [])


def _verify_prices(connection: Connection, sealed: dict[str, dict[str, Any]]) -> None:
    kept = kept_prices(connection)
    for price_id in sorted(kept.keys() | sealed.keys()):
        price = kept.get(price_id)
        if price is None or price.id != price_id or price_id not in sealed:
            raise AuditError("price_altered", f"price version {price_id} is not what was imported")
