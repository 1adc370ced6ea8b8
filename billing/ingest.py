"""Events and acts from the journal into the ledger, each once: the reader's offset moves with them."""

from __future__ import annotations

from contextlib import suppress
from datetime import tzinfo
from pathlib import Path

from sqlalchemy.engine import Engine

from billing.aggregates import roll_up_now
from billing.aside import NotAloneError
from billing.bulk import by_copy
from billing.errors import LedgerError
from billing.ledger import writing
from billing.offsets import move_offset, offset_of
from billing.parsing import Poison
from billing.reading import Chunk, Parser, parser
from billing.store import IngestResult, enter, prepare_days, put_aside, store_each, store_new
from tallybook.segments import SUFFIX, DamagedSegmentError


def ingest(ledger: Engine, journal_dir: Path, zone: tzinfo) -> IngestResult:
    """Store what the journal holds beyond the offsets reached so far, and roll it up into the hours.

    Safe to run again, in parallel and after a crash: an event is stored once by its id, together with
    the new offset. A line that is no event, or that gives a known id another content, is set aside with
    its reason and its bytes; the first content of an id stands.
    Raises: LedgerError: a segment was altered after it was written (code journal_damaged); it is left
        where it is, and every other segment was stored first.
    """
    result, damaged = store_journal(ledger, journal_dir, zone)
    roll_up_now(ledger)
    if damaged:
        raise LedgerError("journal_damaged", "; ".join(damaged))
    return result


def store_journal(ledger: Engine, journal_dir: Path, zone: tzinfo) -> tuple[IngestResult, list[str]]:
    """The same without rolling up: what was found, and which segments were altered and how."""
    result = IngestResult()
    damaged = []
    segments = sorted(journal_dir.glob(f"*{SUFFIX}"))
    waiting = sum(max(segment.stat().st_size - offset_of(ledger, segment.name), 0) for segment in segments)
    with parser(zone, waiting, for_copy=by_copy(ledger)) as reading:
        for segment in segments:
            try:
                _store_segment(ledger, segment, reading, result)
            except DamagedSegmentError as error:
                damaged.append(f"{segment.name}: {error}")
    return result, damaged


def _store_segment(ledger: Engine, segment: Path, reading: Parser, result: IngestResult) -> None:
    """Store what a segment holds, a chunk a transaction, while the next chunk is read."""
    offset = offset_of(ledger, segment.name)
    reading.ask(segment, offset)
    while (chunk := reading.answer()).next_offset != offset:
        reading.ask(segment, chunk.next_offset)
        try:
            stored = _store_chunk(ledger, segment, offset, chunk, reading, result)
        except NotAloneError:  # seldom: an id has come with another content
            stored = _store_chunk(ledger, segment, offset, chunk, reading, result, alone=True)
        if stored:
            offset = chunk.next_offset
        else:  # another ingester was there first
            with suppress(DamagedSegmentError):
                reading.answer()
            offset = offset_of(ledger, segment.name)
            reading.ask(segment, offset)


def _store_chunk(
    ledger: Engine,
    segment: Path,
    offset: int,
    chunk: Chunk,
    reading: Parser,
    result: IngestResult,
    *,
    alone: bool = False,
) -> bool:
    """Store a chunk and move the offset in one transaction; false when it was moved by another ingester.

    What was read and parsed before the transaction began is thrown away then.
    """
    packed, parsed, found = chunk.packed, chunk.parsed, None
    if packed is None:
        parsed = reading.again(segment, offset, chunk)
    with writing(ledger) as connection:
        enter(connection, parsed, alone=alone or chunk.torn is not None)
        prepare_days(ledger, packed.all_days if packed else parsed.days)
        if not move_offset(connection, segment.name, offset, chunk.next_offset):
            return False
        if packed is not None:
            found = store_new(connection, segment.name, offset, packed, parsed)
        if found is None:
            parsed = reading.again(segment, offset, chunk)
            found = store_each(connection, segment.name, offset, parsed)
        if chunk.torn is not None:
            torn = Poison(chunk.torn, "torn_line", "the writer died before it finished this line")
            put_aside(connection, segment.name, [torn], found)
    result.add(found)
    return True
