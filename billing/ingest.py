"""Events and acts from the journal into the ledger, each once: the reader's offset moves with them."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import tzinfo
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from billing.aggregates import roll_up_now
from billing.errors import LedgerError
from billing.events import EventReader
from billing.ledger import insert, writing
from billing.store import IngestResult, Poison, enter, parse, prepare_days, put_aside, store
from billing.tables import journal_offsets
from tallybook.segments import SUFFIX, DamagedSegmentError, read_segment

BATCH_BYTES = 2 << 20  # read at a time: some three thousand events a transaction


def ingest(ledger: Engine, journal_dir: Path, zone: tzinfo) -> IngestResult:
    """Store what the journal holds beyond the offsets reached so far, and roll it up into the hours.

    Safe to run again, in parallel and after a crash: an event is stored once by its id, together with
    the new offset. A line that is no event, or that gives a known id another content, is set aside with
    its reason and its bytes; the first content of an id stands.
    Raises: LedgerError: a segment was altered after it was written (code journal_damaged); it is left
        where it is, and every other segment was stored first.
    """
    result, damaged = store_journal(ledger, journal_dir, EventReader(zone))
    roll_up_now(ledger)
    if damaged:
        raise LedgerError("journal_damaged", "; ".join(damaged))
    return result


def store_journal(ledger: Engine, journal_dir: Path, reader: EventReader) -> tuple[IngestResult, list[str]]:
    """The same without rolling up: what was found, and which segments were altered and how."""
    result = IngestResult()
    damaged = []
    for segment in sorted(journal_dir.glob(f"*{SUFFIX}")):
        try:
            with _no_collection():
                while (batch := _store_batch(ledger, segment, reader)) is not None:
                    result.add(batch)
        except DamagedSegmentError as error:
            damaged.append(f"{segment.name}: {error}")
    return result, damaged


def move_offset(connection: Connection, segment: str, since: int, to: int) -> bool:
    """Move a reader's offset in the caller's transaction; false when another has moved it from `since`.

    The offset stays locked until the transaction ends.
    """
    connection.execute(
        insert(connection, journal_offsets).values(segment=segment, offset_bytes=0).on_conflict_do_nothing()
    )
    moved = connection.execute(
        journal_offsets.update()
        .where(journal_offsets.c.segment == segment, journal_offsets.c.offset_bytes == since)
        .values(offset_bytes=to)
    )
    return moved.rowcount == 1


def offset_of(ledger: Engine, segment: str) -> int:
    """The offset that the ledger has reached in a segment; 0 before the first batch."""
    query = sa.select(journal_offsets.c.offset_bytes).where(journal_offsets.c.segment == segment)
    with ledger.connect() as connection:
        return connection.scalar(query) or 0


def _store_batch(ledger: Engine, segment: Path, reader: EventReader) -> IngestResult | None:
    """Move one batch in one transaction; None when the segment holds no more for now.

    Read and parsed before the transaction begins, which then is short; who finds that another ingester
    was there first stores nothing, and looks again.
    """
    offset = offset_of(ledger, segment.name)
    extract = read_segment(segment, offset, BATCH_BYTES)
    if extract.next_offset == offset:
        return None
    parsed = parse(extract.lines, reader)
    with writing(ledger) as connection:
        enter(connection, parsed)
        prepare_days(ledger, parsed.days)
        if not move_offset(connection, segment.name, offset, extract.next_offset):
            return IngestResult()
        result = store(connection, segment.name, offset, parsed)
        if extract.torn is not None:
            torn = Poison(extract.torn, "torn_line", "the writer died before it finished this line")
            put_aside(connection, segment.name, [torn], result)
    return result


@contextmanager
def _no_collection() -> Iterator[None]:
    """Spare the garbage collector: what is read here makes no cycles, and it would look at all of it."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
