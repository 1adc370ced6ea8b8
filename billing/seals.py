"""Seals: one hash for the events of a bill and one for its lines, which the audit chain keeps."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from hashlib import sha256
from itertools import groupby
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing.errors import AuditError
from billing.events import content_sha256
from billing.merkle import leaf_hash, merkle_root
from billing.owing import CLOSED
from billing.tables import COUNTS, bill_lines, event_batches, event_ids, usage_events

_EVENTS_AT_ONCE = 10_000


@dataclass(frozen=True)
class Seal:
    """What a closed day's record says of its bill; another value of any of them is another bill."""

    day: str
    batches: int
    events: int
    events_root: str  # Merkle root over the batches on the bill, in the order of their numbers
    lines: int
    lines_root: str  # the same over its lines, in the order of their hashes


def seal(connection: Connection, day: date, leaves: list[bytes] | None = None) -> Seal:
    """Hash the bill of a day as it stands: the batches of events on it, and its lines.

    A batch has the root over its events since it was stored, so no event is read here. `leaves`: those of
    the lines, where this transaction has just written them.
    """
    # In the order of the hashes: databases disagree on the order of text, and lines may be many.
    batches, lines = batches_of(connection, day), sorted(leaves or _line_leaves(connection, day))
    return Seal(
        day.isoformat(),
        len(batches),
        sum(batch["requests"] for batch in batches),
        batches_root(batches),
        len(lines),
        merkle_root(lines).hex(),
    )


def batches_of(connection: Connection, day: date) -> list[Mapping[str, Any]]:
    """The batches on the bill of a day, rows of `event_batches`, in the order of their numbers."""
    query = sa.select(event_batches).where(event_batches.c.bill_day == day).order_by(event_batches.c.id)
    return [dict(row) for row in connection.execute(query).mappings()]


def batches_root(batches: Iterable[Mapping[str, Any]]) -> str:
    """The Merkle root over batches in their order, in hexadecimal digits."""
    return merkle_root(map(batch_leaf, batches)).hex()


def batch_leaf(batch: Mapping[str, Any]) -> bytes:
    """The leaf hash of a batch: what it holds and where it came from."""
    names = ("id", "day", "segment", "offset_bytes", "requests", "prompt_tokens", "cached_tokens",
             "completion_tokens")  # fmt: skip
    return leaf_hash(orjson.dumps([*(batch[name] for name in names), batch["events_root"].hex()]))


def event_leaves(connection: Connection, batch: Mapping[str, Any]) -> list[tuple[str, bytes]]:
    """Id and leaf hash of every event of a batch, recomputed from its row, in the order of their ids.

    Raises: AuditError: an event is not what was stored, is missing or was put in; named by its id.
    """
    [(_, leaves)] = _checked(connection, [batch])
    return leaves


def verify_events(connection: Connection, day: date) -> int:
    """Recompute every event that was used on a day, and the roots of their batches; how many there are.

    Batches whose events were dropped by retention are left out: their roots are in the seals.
    Raises: AuditError: see `event_leaves`.
    """
    of_day = sa.and_(event_batches.c.day == day, event_batches.c.dropped_at.is_(None))
    query = sa.select(event_batches).where(of_day)
    batches = [dict(row) for row in connection.execute(query.order_by(event_batches.c.id)).mappings()]
    strays = (
        sa.select(usage_events.c.id)
        .where(
            usage_events.c.day == day,
            usage_events.c.batch_id.not_in(sa.select(event_batches.c.id).where(of_day)),
        )
        .limit(1)
    )
    stray = connection.scalar(strays)
    if stray is not None:
        raise AuditError("event_altered", f"event {stray} of {day} is in no batch: it was put in or moved")
    pending: list[Mapping[str, Any]] = []
    events = 0
    for batch in batches:
        pending.append(batch)
        events += batch["requests"]
        if events >= _EVENTS_AT_ONCE:
            list(_checked(connection, pending))
            pending, events = [], 0
    list(_checked(connection, pending))
    return sum(batch["requests"] for batch in batches)


def ids_sha256(connection: Connection, day: date) -> str:
    """A digest of the ids of the events that are there of a day, batch by batch in their order."""
    query = sa.select(usage_events.c.id).where(usage_events.c.day == day)
    digest = sha256()
    ordered = query.order_by(usage_events.c.batch_id, usage_events.c.id)
    for event_id in connection.scalars(ordered, execution_options={"yield_per": _EVENTS_AT_ONCE}):
        digest.update(event_id.encode() + b"\n")
    return digest.hexdigest()


def verify_ids(connection: Connection, drops: Mapping[str, Mapping[str, Any]]) -> None:
    """Check that the ids that are never billed again are those of the events that were stored.

    Of each batch there are as many as it held events; those whose events were dropped have its root, and are
    those of the chain's record of it. `drops`: bodies of these records, by their `day` and `dropped_at`.
    Raises: AuditError: an id was put in, altered or removed; named by its batch (code event_altered).
    """
    batch, known = event_batches.c, event_ids.c
    claimed = sa.select(known.batch_id, sa.func.count().label("ids"), sa.literal(0).label("events"))
    held = sa.select(batch.id, sa.literal(0), batch.requests)
    both = claimed.group_by(known.batch_id).union_all(held).subquery().c
    ids, events = (sa.cast(sa.func.sum(each), sa.BigInteger) for each in (both.ids, both.events))
    query = sa.select(both.batch_id, ids, events).group_by(both.batch_id).having(ids != events)
    for number, found, stored in connection.execute(query.order_by(both.batch_id).limit(1)):
        raise AuditError("event_altered", f"batch {number} has ids of {found} events, but held {stored}")
    dropped = (
        sa.select(
            batch.id,
            batch.events_root,
            batch.day,
            batch.dropped_at,
            known.content_sha256,
            known.id.label("event_id"),
        )
        .join(event_ids, known.batch_id == batch.id)
        .where(batch.dropped_at.is_not(None))
        .order_by(batch.id, known.id)
    )
    rows = connection.execute(dropped, execution_options={"yield_per": _EVENTS_AT_ONCE})
    digests = {drop: sha256() for drop in drops}
    for (number, root, day, at), group in groupby(
        rows, key=lambda row: (row.id, row.events_root, row.day, row.dropped_at)
    ):
        leaves = []
        for row in group:
            leaves.append(row.content_sha256)
            digests[f"{day} {at.isoformat()}"].update(row.event_id.encode() + b"\n")
        if merkle_root(leaves) != root:
            raise AuditError("event_altered", f"batch {number} has other ids than its dropped events had")
    for drop, body in drops.items():
        if digests[drop].hexdigest() != body.get("ids_sha256", digests[drop].hexdigest()):
            raise AuditError(
                "event_altered", f"other ids are kept than those of the events dropped for {drop}"
            )


def verify_bill_days(connection: Connection, closed: Container[date]) -> None:
    """Check that batches on no closed bill are on that of their own day, or came late for it.

    Raises: AuditError: one is on another bill (code event_altered), named by its number.
    """
    batch = event_batches.c
    query = sa.select(batch.id, batch.day, batch.bill_day).order_by(batch.id)
    open_ = sa.or_(batch.bill_day.is_(None), batch.bill_day.not_in(CLOSED))
    for number, day, bill_day in connection.execute(query.where(open_)):
        if bill_day != (None if day in closed else day):
            raise AuditError(
                "event_altered", f"batch {number} of {day} is on the bill of {bill_day or 'no day'}"
            )


def _checked(
    connection: Connection, batches: list[Mapping[str, Any]]
) -> Iterator[tuple[Mapping[str, Any], list[tuple[str, bytes]]]]:
    """Each batch with the leaves of its events, which were found to be what was stored."""
    if not batches:
        return
    found: dict[int, list[tuple[str, bytes]]] = {batch["id"]: [] for batch in batches}
    tokens = {number: [0] * len(COUNTS) for number in found}
    kept = event_ids.c.content_sha256
    same = sa.and_(event_ids.c.id == usage_events.c.id, event_ids.c.batch_id == usage_events.c.batch_id)
    query = (
        sa.select(usage_events, kept.label("kept"))
        .join_from(usage_events, event_ids, same, isouter=True)
        .where(usage_events.c.day == batches[0]["day"], usage_events.c.batch_id.in_(found))
    )
    for event in connection.execute(query).mappings():
        digest = content_sha256(event)
        if digest != event["kept"]:
            raise AuditError("event_altered", f"event {event['id']} is not what was stored on {event['day']}")
        found[event["batch_id"]].append((event["id"], digest))
        sums = tokens[event["batch_id"]]
        for place, name in enumerate(COUNTS):
            sums[place] += event[name]
    for batch in batches:
        leaves = sorted(found[batch["id"]])
        if (
            len(leaves) != batch["requests"]
            or merkle_root(leaf for _, leaf in leaves) != batch["events_root"]
        ):
            raise AuditError("event_altered", _what_differs(connection, batch, {id_ for id_, _ in leaves}))
        if tokens[batch["id"]] != [batch[name] for name in COUNTS]:
            told = ", ".join(f"{batch[name]} {name.replace('_', ' ')}" for name in COUNTS)
            raise AuditError(
                "event_altered", f"{_named(batch)} says {told}; its events are {tokens[batch['id']]}"
            )
        yield batch, leaves


def _what_differs(connection: Connection, batch: Mapping[str, Any], found: set[str]) -> str:
    where = _named(batch)
    stored = set(connection.scalars(sa.select(event_ids.c.id).where(event_ids.c.batch_id == batch["id"])))
    if missing := sorted(stored - found):
        return f"event {missing[0]} is missing from {where}"
    return f"{where} held {batch['requests']} events; their hash is not the one of the {len(found)} found"


def line_leaf(line: Sequence[Any]) -> bytes:
    """The leaf hash of a line, from the columns of `bill_lines` in their order; days may be ISO 8601 text."""
    return leaf_hash(orjson.dumps(line))


def _line_leaves(connection: Connection, day: date) -> list[bytes]:
    query = sa.select(bill_lines).where(bill_lines.c.day == day)
    parts = connection.execute(query, execution_options={"yield_per": _EVENTS_AT_ONCE}).partitions()
    return [line_leaf(tuple(row)) for part in parts for row in part]


def _named(batch: Mapping[str, Any]) -> str:
    return f"batch {batch['id']} of {batch['day']} ({batch['segment']} at byte {batch['offset_bytes']})"
