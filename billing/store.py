"""Storing events: each id once, in batches that keep a hash of what was stored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from sqlite3 import IntegrityError
from typing import Any, NamedTuple

import orjson
import sqlalchemy as sa
from psycopg.errors import UniqueViolation
from sqlalchemy.engine import Connection, Engine

from billing import acts
from billing.aggregates import roll_up_now
from billing.aside import keep_aside, take_out
from billing.bulk import by_copy
from billing.event_rows import insert_events, insert_ids
from billing.events import EventReader, EventRow
from billing.ledger import closed_days, lock_ledger, share_ledger, writing
from billing.packing import Packed, pack, pack_if_each_once
from billing.parsing import Parsed, Poison, parse
from billing.partitions import prepare_days
from billing.tables import event_batches, set_aside
from tallybook.acts import Act
from tallybook.segments import Line

_FINAL = ("torn_line", "conflicting_duplicate")  # what no later look will see otherwise


@dataclass
class IngestResult:
    """What one run found: every line read is stored, a duplicate, an act, or set aside with a reason."""

    stored: int = 0
    duplicates: int = 0
    acts: int = 0  # new in the audit chain
    set_aside: dict[str, int] = field(default_factory=dict)

    @property
    def read(self) -> int:
        """Lines read."""
        return self.stored + self.duplicates + self.acts + sum(self.set_aside.values())

    def add(self, other: IngestResult) -> None:
        """Count what another run, or a part of this one, found."""
        self.stored += other.stored
        self.duplicates += other.duplicates
        self.acts += other.acts
        for code, count in other.set_aside.items():
            self.set_aside[code] = self.set_aside.get(code, 0) + count


def enter(connection: Connection, parsed: Parsed, *, alone: bool = False) -> None:
    """Share the ledger with others that ingest.

    With acts, or lines to be set aside, have it `alone`: they go to the audit chain.
    """
    (lock_ledger if alone or parsed.acts or parsed.poison else share_ledger)(connection)


def store(connection: Connection, segment: str, offset: int, parsed: Parsed) -> IngestResult:
    """Store what is new, in the caller's transaction; set aside what can't be stored, with its reason.

    Of the same id the first content stands; another content is set aside. `enter` comes first, and the days'
    partitions must be there (`prepare_days`). `segment` and `offset` say where the lines came from.
    Raises: NotAloneError: something is to be set aside, and `enter` was not asked to have the ledger alone.
    """
    packed = pack_if_each_once([row for _, row in parsed.rows], for_copy=by_copy(connection))
    found = None if packed is None else store_new(connection, segment, offset, packed, parsed)
    return found or store_each(connection, segment, offset, parsed)


def store_new(
    connection: Connection, segment: str, offset: int, packed: Packed, others: Parsed
) -> IngestResult | None:
    """`store` for events that are all new, as nearly always; None: one was known, and nothing was done.

    `others`: what was found beside them.
    """
    batch_ids = _batch_ids(connection, len(packed.days))
    if not _claim_all(connection, packed, batch_ids):
        return None
    _write(connection, packed, batch_ids, segment, offset)
    result = IngestResult(stored=packed.requests)
    _store_others(connection, segment, others.acts, others.poison, result)
    return result


def store_each(connection: Connection, segment: str, offset: int, parsed: Parsed) -> IngestResult:
    """`store` for events of which some are known: each is asked for and judged."""
    first = {row.id: row for _, row in reversed(parsed.rows)}
    days = sorted(parsed.days)
    batch_of = dict(zip(days, _batch_ids(connection, len(days)), strict=True))
    new = _claim_new(
        connection, [(row.id, batch_of[row.day], row.content_sha256) for _, row in sorted(first.items())]
    )
    packed = pack([row for row in first.values() if row.id in new], for_copy=by_copy(connection))
    _write(connection, packed, [batch_of[day] for day in packed.all_days], segment, offset)
    result, poison = IngestResult(stored=len(new)), list(parsed.poison)
    _judge_repeated(connection, parsed.rows, new, result, poison)
    _store_others(connection, segment, parsed.acts, poison, result)
    return result


def _judge_repeated(
    connection: Connection,
    rows: Iterable[tuple[Line, EventRow]],
    new: set[str],
    result: IngestResult,
    poison: list[Poison],
) -> None:
    """Count what was there before, and refuse what says something else than what is stored."""
    first = set(new)
    repeated = []
    for line, row in rows:
        if row.id in first:
            first.remove(row.id)
        else:
            repeated.append((line, row))
    known = _known(connection, sorted({row.id for _, row in repeated}))
    for line, row in repeated:
        if known[row.id].content_sha256 == row.content_sha256:
            result.duplicates += 1
        else:
            message = f"event {row.id} is stored with another content, which stands"
            poison.append(Poison(line, "conflicting_duplicate", message))


def _store_others(
    connection: Connection,
    segment: str,
    acts: Iterable[tuple[Line, Act]],
    poison: Iterable[Poison],
    result: IngestResult,
) -> None:
    """Put acts into the audit chain, and set aside what is poison."""
    poison = list(poison)
    for line, act in acts:
        _chain(connection, line, act, result, poison)
    put_aside(connection, segment, poison, result)


def _chain(connection: Connection, line: Line, act: Act, result: IngestResult, poison: list[Poison]) -> None:
    outcome = acts.chain_act(connection, act)
    if outcome == "conflict":
        message = f"act {act.id} is in the audit chain with another content, which stands"
        poison.append(Poison(line, "conflicting_duplicate", message))
    result.acts += outcome == "stored"
    result.duplicates += outcome == "duplicate"


def put_aside(connection: Connection, segment: str, poison: Sequence[Poison], result: IngestResult) -> None:
    """Keep lines that can't be stored, with their bytes and the reason; see `billing.aside.keep_aside`."""
    if poison:
        keep_aside(connection, segment, poison)
    for _, code, _ in poison:
        result.set_aside[code] = result.set_aside.get(code, 0) + 1


def retry_set_aside(ledger: Engine, zone: tzinfo, now: datetime | None = None) -> IngestResult:
    """Read again what was set aside, and store what can be stored now; the rest stays where it is.

    For lines whose time was ahead, or whose type an older version did not know.
    """
    with ledger.connect() as connection:
        kept = connection.execute(sa.select(set_aside).where(set_aside.c.code.not_in(_FINAL))).all()
    reader, result = EventReader(zone, for_copy=by_copy(ledger)), IngestResult()
    for row in kept:
        parsed = parse([Line(row.offset_bytes, row.raw)], reader, now)
        if parsed.poison:
            continue
        with writing(ledger) as connection:
            enter(connection, parsed, alone=True)
            prepare_days(ledger, parsed.days)
            if take_out(connection, row._mapping):
                result.add(store(connection, row.segment, row.offset_bytes, parsed))
    roll_up_now(ledger)
    return result


def _batch_ids(connection: Connection, count: int) -> Sequence[int]:
    """Numbers for new batches."""
    if connection.dialect.name == "postgresql":
        query = sa.text("SELECT nextval('event_batches_id_seq') FROM generate_series(1, :count)")
        return connection.scalars(query, {"count": count}).all()
    last = connection.scalar(sa.select(sa.func.max(event_batches.c.id))) or 0  # we are the only writer
    return range(last + 1, last + 1 + count)


def _claim_all(connection: Connection, packed: Packed, batch_ids: Sequence[int]) -> bool:
    """Insert the ids; false if any was stored before, and nothing is inserted."""
    if not batch_ids:
        return True
    try:
        with connection.begin_nested():
            insert_ids(connection, packed, batch_ids)
    except (UniqueViolation, IntegrityError):  # COPY knows no ON CONFLICT
        return False
    return True


def _claim_new(connection: Connection, claims: Sequence[tuple[str, int, bytes]]) -> set[str]:
    """Insert the ids that were never stored before, and give them back: the database decides duplicates."""
    cursor: Any = connection.connection.cursor()
    if connection.dialect.name == "postgresql":
        cursor.execute(
            "INSERT INTO event_ids (id, batch_id, content_sha256) "
            "SELECT * FROM unnest(%b::text[], %b::bigint[], %b::bytea[]) ON CONFLICT DO NOTHING RETURNING id",
            tuple(list(column) for column in zip(*claims, strict=True)),
        )
        return {row[0] for row in cursor.fetchall()}
    cursor.executemany(
        "INSERT OR IGNORE INTO event_ids (id, batch_id, content_sha256) VALUES (?, ?, ?)", claims
    )
    known = _known(connection, [event_id for event_id, _, _ in claims])
    return {event_id for event_id, batch_id, _ in claims if known[event_id].batch_id == batch_id}


class _Known(NamedTuple):
    batch_id: int
    content_sha256: bytes


def _known(connection: Connection, ids: Sequence[str]) -> dict[str, _Known]:
    """What is kept of events by their ids; an id that was never stored is missing."""
    if not ids:
        return {}
    cursor: Any = connection.connection.cursor()
    if connection.dialect.name == "postgresql":
        cursor.execute("SELECT id, batch_id, content_sha256 FROM event_ids WHERE id = ANY(%b)", (list(ids),))
    else:
        cursor.execute(
            "SELECT id, batch_id, content_sha256 FROM event_ids WHERE id IN (SELECT value FROM json_each(?))",
            (orjson.dumps(ids).decode(),),
        )
    return {event_id: _Known(*kept) for event_id, *kept in cursor.fetchall()}


def _write(
    connection: Connection, packed: Packed, batch_ids: Sequence[int], segment: str, offset: int
) -> None:
    """Write events and the batches that vouch for them, one a day."""
    if not batch_ids:
        return
    insert_events(connection, packed, batch_ids)
    closed = closed_days(connection, packed.all_days)
    for each, batch_id in zip(packed.days, batch_ids, strict=True):
        prompt, cached, completion = each.tokens
        connection.execute(
            event_batches.insert().values(
                id=batch_id,
                day=each.day,
                bill_day=None if each.day in closed else each.day,
                segment=segment,
                offset_bytes=offset,
                requests=each.requests,
                prompt_tokens=prompt,
                cached_tokens=cached,
                completion_tokens=completion,
                events_root=each.events_root,
                rolled_up=False,
            )
        )
