"""Events from the journal into the ledger: each once, in the transaction that moves the reader's offset."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timezone, tzinfo
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from billing.aggregates import add_to_hours
from billing.errors import LedgerError
from billing.events import event_row
from billing.ledger import closed_days, insert, share_ledger, writing
from billing.tables import journal_offsets, set_aside, usage_events
from tallybook.segments import SUFFIX, DamagedSegmentError, Line, read_segment
from tallybook.usage import InvalidEventError

BATCH_BYTES = 1 << 20  # read at a time: about two thousand events a transaction


@dataclass
class IngestResult:
    """What one run found: every line read is stored, a duplicate, or set aside with a reason."""

    stored: int = 0
    duplicates: int = 0
    set_aside: dict[str, int] = field(default_factory=dict)

    @property
    def read(self) -> int:
        """Lines read."""
        return self.stored + self.duplicates + sum(self.set_aside.values())


class _Poison(NamedTuple):
    line: Line
    code: str
    message: str


def ingest(ledger: Engine, journal_dir: Path, zone: tzinfo) -> IngestResult:
    """Store what the journal holds beyond the offsets reached so far.

    Safe to run again, in parallel and after a crash: an event is stored once by its id, together with
    its share of the hourly aggregates and the new offset. A line that is no event, or that gives a known
    id another content, is set aside with its reason and its bytes; the first content of an id stands.
    Raises: LedgerError: a segment was altered after it was written (code journal_damaged); it is left
        where it is, and every other segment was stored first.
    """
    result = IngestResult()
    damaged = []
    for segment in sorted(journal_dir.glob(f"*{SUFFIX}")):
        try:
            while _ingest_batch(ledger, segment, zone, result):
                pass
        except DamagedSegmentError as error:
            damaged.append(f"{segment.name}: {error}")
    if damaged:
        raise LedgerError("journal_damaged", "; ".join(damaged))
    return result


def _ingest_batch(ledger: Engine, segment: Path, zone: tzinfo, result: IngestResult) -> bool:
    """Move one batch in one transaction; false when the segment holds no more for now."""
    batch = IngestResult()
    with writing(ledger) as connection:
        share_ledger(connection)
        offset = _locked_offset(connection, segment.name)
        extract = read_segment(segment, offset, BATCH_BYTES)
        if extract.next_offset == offset:
            return False
        poison = _store(connection, extract.lines, zone, batch)
        if extract.torn is not None:
            poison.append(_Poison(extract.torn, "torn_line", "the writer died before it finished this line"))
        _set_aside(connection, segment.name, poison, batch)
        connection.execute(
            journal_offsets.update()
            .where(journal_offsets.c.segment == segment.name)
            .values(offset_bytes=extract.next_offset)
        )
    result.stored += batch.stored
    result.duplicates += batch.duplicates
    for code, count in batch.set_aside.items():
        result.set_aside[code] = result.set_aside.get(code, 0) + count
    return True


def _locked_offset(connection: Connection, segment: str) -> int:
    """The offset reached, locked until this transaction ends."""
    connection.execute(
        insert(connection, journal_offsets).values(segment=segment, offset_bytes=0).on_conflict_do_nothing()
    )
    locked = sa.select(journal_offsets.c.offset_bytes).where(journal_offsets.c.segment == segment)
    return int(connection.execute(locked.with_for_update()).scalar_one())


def _store(connection: Connection, lines: list[Line], zone: tzinfo, result: IngestResult) -> list[_Poison]:
    """Insert the events that are new, and add them to the hours; give back what can't be stored."""
    poison: list[_Poison] = []
    rows: dict[str, dict[str, Any]] = {}
    repeated: list[tuple[Line, dict[str, Any]]] = []
    line_of: dict[str, Line] = {}
    for line in lines:
        try:
            row = _row(line.raw, zone)
        except InvalidEventError as error:
            poison.append(_Poison(line, error.code, str(error)))
            continue
        if row["id"] in rows:
            repeated.append((line, row))
        else:
            rows[row["id"]] = row
            line_of[row["id"]] = line
    closed = closed_days(connection, {row["day"] for row in rows.values()})
    for row in rows.values():
        row["bill_day"] = None if row["day"] in closed else row["day"]
    # In the order of their ids, so that two ingesters never wait for each other in a circle.
    stored = _insert_new(connection, [rows[event_id] for event_id in sorted(rows)])
    add_to_hours(connection, [rows[event_id] for event_id in stored], zone)
    result.stored += len(stored)
    repeated += [(line_of[event_id], row) for event_id, row in rows.items() if event_id not in stored]
    contents = _contents(connection, {row["id"] for _, row in repeated})
    for line, row in repeated:
        if contents[row["id"]] == row["content_sha256"]:
            result.duplicates += 1
        else:
            message = f"event {row['id']} is stored with another content, which stands"
            poison.append(_Poison(line, "conflicting_duplicate", message))
    return poison


def _row(raw: bytes, zone: tzinfo) -> dict[str, Any]:
    try:
        record = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidEventError("not_json", f"not JSON: {error}") from None
    return event_row(record, zone)


def _insert_new(connection: Connection, rows: list[dict[str, Any]]) -> set[str]:
    """Insert, and give back the ids that were not there before: the database decides duplicates."""
    if not rows:
        return set()
    statement = insert(connection, usage_events).on_conflict_do_nothing().returning(usage_events.c.id)
    return set(connection.execute(statement, rows).scalars())


def _contents(connection: Connection, ids: set[str]) -> dict[str, str]:
    """Digest of the stored content by event id."""
    found: dict[str, str] = {}
    pending = sorted(ids)
    for start in range(0, len(pending), 500):
        some = pending[start : start + 500]
        query = sa.select(usage_events.c.id, usage_events.c.content_sha256).where(usage_events.c.id.in_(some))
        found.update((row.id, row.content_sha256) for row in connection.execute(query))
    return found


def _set_aside(connection: Connection, segment: str, poison: list[_Poison], result: IngestResult) -> None:
    now = datetime.now(timezone.utc)
    for line, code, message in poison:
        connection.execute(
            insert(connection, set_aside)
            .values(
                segment=segment, offset_bytes=line.offset, code=code, message=message, raw=line.raw,
                set_aside_at=now,
            )
            .on_conflict_do_nothing()
        )  # fmt: skip
        result.set_aside[code] = result.set_aside.get(code, 0) + 1
