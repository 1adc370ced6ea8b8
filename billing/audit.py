"""The audit: recompute what the chain has sealed, and walk one request to its bill."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import date, datetime, timezone
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing import acts, chain
from billing.aggregates import prove_dropped_hours, prove_each_hour
from billing.aside import KEPT, TAKEN_OUT, prove_set_aside
from billing.closure import prove
from billing.costs.training_runs import prove_runs
from billing.day_sums import prove_day_sums
from billing.errors import AuditError
from billing.ledger import hold_events, kept_facts
from billing.merkle import inclusion_path, root_from_path
from billing.month_proof import prove_months
from billing.offsets import prove_offsets
from billing.owing import CLOSED
from billing.prices.book import kept_tariff, prove_kept
from billing.rating import UNRATED
from billing.retention import verify_dropped
from billing.seals import (
    batch_leaf,
    batches_of,
    event_leaves,
    seal,
    verify_bill_days,
    verify_events,
    verify_ids,
)
from billing.simulation.mark import SIMULATED
from billing.tables import (
    RATED_BY,
    SUBJECT,
    bill_days,
    bill_lines,
    event_batches,
    event_ids,
    usage_events,
    usage_hours,
)
from billing.wallets import prove_wallets


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
    batch: dict[str, Any]
    lines: list[dict[str, Any]]
    sealed_by: int | None  # number of the audit record, None while its bill is open
    event_index: int  # place among the events of its batch
    event_path: list[str]  # sibling hashes up to the batch's root
    batch_index: int | None  # place of the batch on its bill
    batch_path: list[str]  # sibling hashes up to the sealed root


def verify(connection: Connection, progress: Callable[[date], None] = lambda day: None) -> Verified:
    """Recompute every bill, event, wallet and training, and compare them with what was sealed and stored.

    For a transaction that has read nothing yet: see `billing.ledger.hold_events`.
    Raises: AuditError: the first difference, named by record, day or event; or a row that nobody could have
        written so, such as a text for a number, which SQLite takes (code ledger_unreadable). ClosureError:
        the numbers of a bill disagree, named by day, subject and direction.
    """
    try:
        return _verify(connection, progress)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        told = f"a row is not as it can have been written: {type(error).__name__}: {error}"
        raise AuditError("ledger_unreadable", told) from error


def _verify(connection: Connection, progress: Callable[[date], None]) -> Verified:
    hold_events(connection)
    sealed: dict[str, dict[str, Any]] = {}
    count = 0
    imports: list[dict[str, Any]] = []
    dropped: dict[str, dict[str, Any]] = {}
    acted: list[dict[str, Any]] = []
    aside: list[tuple[str, dict[str, Any]]] = []
    for number, kind, body in chain.records(connection):
        count = number
        if kind == "close":
            sealed[body["day"]] = body
        elif kind == "prices":
            imports.append(body)
        elif kind == "retention":
            dropped[f"{body['day']} {body['dropped_at']}"] = body
        elif kind == acts.KIND:
            acted.append(body)
        elif kind in (KEPT, TAKEN_OUT):
            aside.append((kind, body))
    acts.prove_acts(connection, acted)
    prove_kept(connection, imports)
    retried = prove_set_aside(connection, aside, _told_since(sealed))
    verify_dropped(connection, dropped)
    query = sa.select(bill_days).where(bill_days.c.state == "closed").order_by(bill_days.c.day)
    closed = {row.day: row for row in connection.execute(query)}
    for odd in sorted({day.isoformat() for day in closed} ^ sealed.keys()):
        wrong = "was sealed, but is not closed" if odd in sealed else "is closed, but was never sealed"
        raise AuditError("day_altered", f"{odd} {wrong}")
    _prove_facts(connection, sealed)
    events = 0
    for day in _used_days(connection):
        progress(day)
        events += verify_events(connection, day)
        prove_each_hour(connection, day)
    verify_ids(connection, dropped)
    last_drops = {date.fromisoformat(body["day"]): body for body in dropped.values()}
    for day, body in last_drops.items():
        if "hours_sha256" in body:
            prove_dropped_hours(connection, day, body)
    verify_bill_days(connection, closed)
    prove_offsets(connection, retried)
    for day in closed:
        progress(day)
        prove(connection, day)
        row, told = closed[day], sealed[day.isoformat()]
        found = asdict(seal(connection, day)) | {
            "early": row.early,
            "closed_at": row.closed_at and row.closed_at.astimezone(timezone.utc).isoformat(),
            "closed_with": row.closed_with and row.closed_with.isoformat(),
        }
        for name, value in found.items():
            if told.get(name, value) != value:  # an older record does not tell of every name
                raise AuditError("day_altered", f"{day}: {name} is {value}, but {told[name]} was sealed")
    prove_months(connection)
    prove_wallets(connection)
    prove_runs(connection)
    prove_day_sums(connection, last_drops)
    return Verified(count, len(closed), events, chain.head(connection))


def _told_since(sealed: Mapping[str, Mapping[str, Any]]) -> datetime | None:
    """Since when the chain tells of lines that are set aside, as closings tell of facts: None, always."""
    before = [body["closed_at"] for body in sealed.values() if "facts" not in body and "closed_at" in body]
    return max(map(datetime.fromisoformat, before), default=None)


def _used_days(connection: Connection) -> list[date]:
    """Every day that has batches, events or hours: of what was put in, perhaps only one of these."""
    tables = (event_batches, usage_events, usage_hours)
    days = sa.union(*[sa.select(table.c.day) for table in tables])
    return sorted(connection.scalars(days))


def _prove_facts(connection: Connection, sealed: Mapping[str, Mapping[str, Any]]) -> None:
    """Prove that the ledger says of itself what it said at each closing, and at most that it is simulated.

    Usage may be simulated later into a ledger that has closed days.
    """
    kept = kept_facts(connection)
    for day, body in sorted(sealed.items()):
        if (told := body.get("facts")) is None:
            continue  # closed before closings told of them
        for name in sorted(told.keys() | kept.keys() - {SIMULATED}):
            now, then = kept.get(name, "missing"), told.get(name, "not there")
            if now != then:
                raise AuditError(
                    "fact_altered", f"the ledger's {name} is {now}; it was {then} when {day} was closed"
                )


def trace(connection: Connection, request_id: str) -> Trace:
    """Walk a request to its bill.

    Raises: AuditError: no such event (code unknown_request), its row was dropped by retention (code
        event_dropped), or its batch or seal does not hold it.
    """
    batch_id = connection.scalar(sa.select(event_ids.c.batch_id).where(event_ids.c.id == request_id))
    if batch_id is None:
        raise AuditError("unknown_request", f"the ledger has no event {request_id}")
    batch = dict(
        connection.execute(sa.select(event_batches).where(event_batches.c.id == batch_id)).mappings().one()
    )
    if batch["dropped_at"] is not None:
        raise AuditError(
            "event_dropped",
            f"event {request_id} of {batch['day']} is on the bill of {batch['bill_day']}; its row was "
            f"dropped on {batch['dropped_at']:%Y-%m-%d}, after it was proven",
        )
    leaves = event_leaves(connection, batch)
    index = [event_id for event_id, _ in leaves].index(request_id)
    path = inclusion_path([leaf for _, leaf in leaves], index)
    of_batch = sa.and_(usage_events.c.day == batch["day"], usage_events.c.batch_id == batch_id)
    event = dict(
        connection.execute(sa.select(usage_events).where(of_batch, usage_events.c.id == request_id))
        .mappings()
        .one()
    )
    found = Trace(
        event=event,
        batch=batch,
        lines=_lines(connection, event, batch["bill_day"]),
        sealed_by=None,
        event_index=index,
        event_path=[step.hex() for step in path],
        batch_index=None,
        batch_path=[],
    )
    for number, kind, body in chain.records(connection):
        if kind == "close" and batch["bill_day"] and body["day"] == batch["bill_day"].isoformat():
            return _sealed(connection, found, number, body)
    return found


def _lines(connection: Connection, event: dict[str, Any], bill_day: date | None) -> list[dict[str, Any]]:
    """The lines that the event is part of: its subject's, on its bill, then on the one that priced them.

    Lines that are unrated on its bill leave on the closed bill that has a price for them.
    """
    departments = kept_tariff(connection).departments
    whose = (event["user_id"], event["project"], event["department"])
    billed = event | {"department": departments.assigned(*whose, event["day"])}
    line = bill_lines.c
    query = sa.select(bill_lines).where(
        line.usage_day == event["day"],
        sa.or_(line.day == bill_day, line.day.in_(CLOSED)),
        *[line[name] == billed[name] for name in (*SUBJECT, *RATED_BY)],
    )
    found = connection.execute(query.order_by(line.day, line.direction, line.price_id, line.tier)).mappings()
    every = [dict(row) for row in found]
    own = [row for row in every if row["day"] == bill_day]
    if not any(row["price_id"] == UNRATED and row["quantity_tokens"] > 0 for row in own):
        return own
    priced_on = {row["day"] for row in every if row["price_id"] == UNRATED and row["quantity_tokens"] < 0}
    return own + [row for row in every if row["day"] in priced_on]


def _sealed(connection: Connection, found: Trace, number: int, body: dict[str, Any]) -> Trace:
    batches = batches_of(connection, found.batch["bill_day"])
    leaves = [batch_leaf(batch) for batch in batches]
    index = [batch["id"] for batch in batches].index(found.batch["id"])
    path = inclusion_path(leaves, index)
    root = root_from_path(leaves[index], index, body["batches"], path)
    if root is None or root.hex() != body["events_root"]:
        raise AuditError("day_altered", f"the seal of {body['day']} does not hold {found.event['id']}")
    return replace(found, sealed_by=number, batch_index=index, batch_path=[step.hex() for step in path])
