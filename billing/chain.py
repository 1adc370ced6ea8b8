"""The audit chain: what was closed and what was decided, each record hashed over the one before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timezone
from hashlib import sha256
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing.errors import AuditError
from billing.events import content_sha256
from billing.ledger import lock_ledger
from billing.merkle import leaf_hash, merkle_root
from billing.tables import audit_records, bill_lines, usage_events

GENESIS = "0" * 64  # what the first record follows


@dataclass(frozen=True)
class Seal:
    """What a closed day's record says of its bill; another value of any of them is another bill."""

    day: str
    events: int
    events_root: str  # Merkle root over the events on the bill, in the order of their ids
    lines: int
    lines_root: str  # the same over its lines, in the order of their keys


def head(connection: Connection) -> str:
    """The hash of the last record, to be kept outside: it vouches for every record."""
    last = sa.select(audit_records.c.sha256).order_by(audit_records.c.number.desc()).limit(1)
    return connection.scalar(last) or GENESIS


def append(connection: Connection, kind: str, body: Mapping[str, Any], now: datetime | None = None) -> str:
    """Add a record in the caller's transaction; its hash, which vouches for every record before it."""
    lock_ledger(connection)
    last = connection.execute(
        sa.select(audit_records.c.number, audit_records.c.sha256)
        .order_by(audit_records.c.number.desc())
        .limit(1)
    ).one_or_none()
    number, previous = (last.number + 1, last.sha256) if last else (1, GENESIS)
    moment = now or datetime.now(timezone.utc)
    text = orjson.dumps(body, option=orjson.OPT_SORT_KEYS).decode()
    digest = _digest(number, moment, kind, text, previous)
    connection.execute(
        audit_records.insert().values(
            number=number, recorded_at=moment, kind=kind, body=text, previous_sha256=previous, sha256=digest
        )
    )
    return digest


def records(connection: Connection) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Number, kind and body of every record, first to last.

    Raises: AuditError: a record was altered, removed or put in (code chain_broken), named by its number.
    """
    previous = GENESIS
    query = sa.select(audit_records).order_by(audit_records.c.number)
    for expected, row in enumerate(connection.execute(query, execution_options={"yield_per": 1000}), 1):
        if row.number != expected:
            raise AuditError("chain_broken", f"audit record {expected} is missing")
        digest = _digest(row.number, row.recorded_at, row.kind, row.body, row.previous_sha256)
        if row.previous_sha256 != previous or row.sha256 != digest:
            raise AuditError("chain_broken", f"audit record {expected} ({row.kind}) was altered")
        previous = row.sha256
        yield row.number, row.kind, orjson.loads(row.body)


def seal(connection: Connection, day: date) -> Seal:
    """Hash the bill of a day as it stands: its events and its lines.

    Raises: AuditError: an event is not what it was when it was stored (code event_altered).
    """
    events, lines = 0, _line_leaves(connection, day)

    def counted() -> Iterator[bytes]:
        nonlocal events
        for events, (_, leaf) in enumerate(event_leaves(connection, day), 1):  # noqa: B007
            yield leaf

    root = merkle_root(counted())
    return Seal(day.isoformat(), events, root.hex(), len(lines), merkle_root(lines).hex())


def event_leaves(connection: Connection, day: date) -> Iterator[tuple[str, bytes]]:
    """Id and leaf hash of every event on a bill, in the order of their ids; each is checked on the way.

    Raises: AuditError: an event is not what it was when it was stored (code event_altered).
    """
    on_bill = sa.select(usage_events).where(usage_events.c.bill_day == day).order_by(usage_events.c.id)
    for row in connection.execute(on_bill, execution_options={"yield_per": 5000}):
        event = row._mapping
        if content_sha256(event) != event["content_sha256"]:
            raise AuditError("event_altered", f"event {event['id']} is not what was stored; bill of {day}")
        yield event["id"], leaf_hash(f"{event['id']} {event['content_sha256']}".encode())


def _line_leaves(connection: Connection, day: date) -> list[bytes]:
    names = [f"{column.name}" for column in bill_lines.columns]
    query = sa.select(bill_lines).where(bill_lines.c.day == day)
    rows = [dict(zip(names, row, strict=True)) for row in connection.execute(query)]
    # Sorted here: databases disagree on the order of text.
    rows.sort(key=lambda row: [str(row[column.name]) for column in bill_lines.primary_key.columns])
    return [leaf_hash(orjson.dumps(row, option=orjson.OPT_SORT_KEYS)) for row in rows]


def _digest(number: int, moment: datetime, kind: str, body: str, previous: str) -> str:
    said = [number, moment.astimezone(timezone.utc).isoformat(timespec="microseconds"), kind, body, previous]
    return sha256(orjson.dumps(said)).hexdigest()
