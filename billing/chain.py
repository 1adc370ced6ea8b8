"""The audit chain: what was closed and what was decided, each record hashed over the one before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from hashlib import sha256
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing.errors import AuditError
from billing.ledger import lock_ledger
from billing.tables import audit_records

GENESIS = "0" * 64  # what the first record follows


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


def _digest(number: int, moment: datetime, kind: str, body: str, previous: str) -> str:
    said = [number, moment.astimezone(timezone.utc).isoformat(timespec="microseconds"), kind, body, previous]
    return sha256(orjson.dumps(said)).hexdigest()
