"""Administrative acts from the journal into the audit chain: each once, by its id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timezone
from hashlib import sha256
from typing import Any, NamedTuple

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing import chain
from billing.errors import AuditError
from billing.tables import acts, audit_records
from tallybook.acts import Act

KIND = "act"  # of its record in the audit chain


class Chained(NamedTuple):
    """An act as the audit chain has it."""

    number: int
    body: dict[str, Any]


def chain_act(connection: Connection, act: Act) -> str:
    """Add an act to the audit chain unless it is there: `stored`, `duplicate`, or `conflict`.

    For a transaction that has locked the ledger. A conflict is a known id with another content: the first
    stands.
    """
    body = _body(act)
    digest = _digest(body)
    known = connection.scalar(sa.select(acts.c.content_sha256).where(acts.c.id == act.id))
    if known is not None:
        return "duplicate" if known == digest else "conflict"
    chain.append(connection, KIND, body)
    connection.execute(acts.insert().values(id=act.id, content_sha256=digest))
    return "stored"


def find(connection: Connection, act_id: str) -> Chained | None:
    """The act with this id, with the number of its audit record.

    Raises: AuditError: the audit chain does not hold it as it was.
    """
    if connection.scalar(sa.select(acts.c.id).where(acts.c.id == act_id)) is None:
        return None
    for number, kind, body in chain.records(connection):
        if kind == KIND and body["id"] == act_id:
            return Chained(number, body)
    raise _altered(act_id, "the audit chain does not hold it")


def prove_acts(connection: Connection, chained: Sequence[Mapping[str, Any]]) -> None:
    """Prove that the acts known by their ids are those of the chain, whose bodies are given.

    Raises: AuditError: an id was altered, removed or put in (code act_altered).
    """
    known = {row.id: row.content_sha256 for row in connection.execute(sa.select(acts))}
    for body in chained:
        if known.pop(body["id"], None) != _digest(body):
            raise _altered(body["id"], "its id is not kept as it was chained: it could be chained again")
    for act_id in known:
        raise _altered(act_id, "the audit chain does not hold it")


def recent(connection: Connection, limit: int) -> Sequence[Chained]:
    """The last acts of the chain, newest first; unproven, see `prove_acts`."""
    query = (
        sa.select(audit_records.c.number, audit_records.c.body)
        .where(audit_records.c.kind == KIND)
        .order_by(audit_records.c.number.desc())
        .limit(limit)
    )
    return [Chained(row.number, orjson.loads(row.body)) for row in connection.execute(query)]


def _body(act: Act) -> dict[str, Any]:
    return {
        "id": act.id,
        "source": act.source,
        "time": act.time.astimezone(timezone.utc).isoformat(timespec="microseconds"),
        "who": act.who,
        "kind": act.kind,
        "details": dict(act.details),
    }


def _digest(body: Mapping[str, Any]) -> bytes:
    return sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).digest()


def _altered(act_id: str, what: str) -> AuditError:
    return AuditError("act_altered", f"act {act_id}: {what}")
