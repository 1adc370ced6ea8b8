"""Lines that can't be stored, set aside with their bytes and the reason, and proven by the audit chain."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from hashlib import sha256
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing import chain
from billing.errors import AuditError
from billing.ledger import insert, lock_ledger, lock_ledger_at_once
from billing.parsing import Poison
from billing.tables import set_aside

KEPT = "set_aside"  # of their records in the audit chain
TAKEN_OUT = "retried"
_ONE_BY_ONE = {"yield_per": 1000}


class NotAloneError(Exception):
    """A line must go to the audit chain, and others share the ledger: to be done again with it alone."""


def keep_aside(connection: Connection, segment: str, poison: Sequence[Poison]) -> None:
    """Keep these lines, and tell the audit chain of them, in the caller's transaction.

    Raises: NotAloneError: the caller shares the ledger with others, and must have it alone.
    """
    if not lock_ledger_at_once(connection):
        raise NotAloneError
    now = datetime.now(timezone.utc)
    told = []
    for line, code, message in poison:
        row = {"segment": segment, "offset_bytes": line.offset, "code": code, "message": message,
               "raw": line.raw, "set_aside_at": now}  # fmt: skip
        statement = insert(connection, set_aside).values(row).on_conflict_do_nothing()
        if connection.execute(statement).rowcount:
            told.append([line.offset, _digest(row)])
    if told:
        chain.append(connection, KEPT, {"segment": segment, "lines": told}, now)


def take_out(connection: Connection, row: Mapping[Any, Any]) -> bool:
    """Remove a line that can be stored now, and tell the audit chain; false if another one has done so."""
    lock_ledger(connection)
    place = (set_aside.c.segment == row["segment"], set_aside.c.offset_bytes == row["offset_bytes"])
    if not connection.execute(set_aside.delete().where(*place)).rowcount:
        return False
    told = {"segment": row["segment"], "lines": [[row["offset_bytes"], _digest(row)]]}
    chain.append(connection, TAKEN_OUT, told)
    return True


def prove_set_aside(
    connection: Connection, chained: Iterable[tuple[str, Mapping[str, Any]]], since: datetime | None = None
) -> set[tuple[str, int]]:
    """Prove that the lines set aside are those of the chain, less those that were retried since: which.

    Args:
        chained: kind and body of the chain's records of the kinds KEPT and TAKEN_OUT, in their order.
        since: lines that were set aside before are not in the chain, which did not tell of them yet.
    Raises: AuditError: a line was altered, removed or put in (code set_aside_altered), named by its place.
    """
    told: dict[tuple[str, int], str] = {}
    retried = set()
    for kind, body in chained:
        for offset, digest in body["lines"]:
            place = body["segment"], offset
            if kind == KEPT:
                told[place] = digest
            elif told.get(place, digest if since else None) == digest:
                told.pop(place, None)
                retried.add(place)
            else:
                raise _altered(place, "was not what was set aside when it was retried")
    query = sa.select(set_aside).order_by(set_aside.c.segment, set_aside.c.offset_bytes)
    for row in connection.execute(query, execution_options=_ONE_BY_ONE).mappings():
        place = row["segment"], row["offset_bytes"]
        if place not in told and since is not None and row["set_aside_at"] <= since:
            continue
        if told.pop(place, None) != _digest(row):
            raise _altered(place, "is not what was set aside")
    for place in sorted(told):
        raise _altered(place, "is missing among those set aside")
    return retried


def _digest(row: Mapping[Any, Any]) -> str:
    names = ("segment", "offset_bytes", "code", "message")
    moment = row["set_aside_at"].astimezone(timezone.utc).isoformat(timespec="microseconds")
    said = [*(row[name] for name in names), bytes(row["raw"]).hex(), moment]
    return sha256(orjson.dumps(said)).hexdigest()


def _altered(place: tuple[str, int], what: str) -> AuditError:
    return AuditError("set_aside_altered", f"the line of {place[0]} at byte {place[1]} {what}")
