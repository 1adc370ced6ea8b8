"""Events and acts from the journal into the ledger, each once: the reader's offset moves with them."""

from __future__ import annotations

from contextlib import closing
from datetime import tzinfo
from pathlib import Path

from sqlalchemy.engine import Engine

from billing.aggregates import roll_up_now
from billing.aside import NotAloneError
from billing.bulk import by_copy
from billing.chunks import Chunk
from billing.errors import LedgerError
from billing.ledger import writing
from billing.offsets import move_offset, offset_of
from billing.parsing import Poison
from billing.partitions import prepare_days
from billing.reading import Reader, reader
from billing.store import IngestResult, enter, put_aside, store_each, store_new
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
    with reader(zone, waiting, for_copy=by_copy(ledger)) as reading:
        for segment in segments:
            try:
                _store_segment(ledger, segment, reading, result)
            except DamagedSegmentError as error:
                damaged.append(f"{segment.name}: {error}")
    return result, damaged


def _store_segment(ledger: Engine, segment: Path, reading: Reader, result: IngestResult) -> None:
    """Store what a segment holds, a chunk a transaction, while the next chunk is read."""
    to_the_end = False
    while not to_the_end:
        offset = offset_of(ledger, segment.name)
        with closing(reading.chunks(segment, offset)) as chunks:
            for chunk in chunks:
                try:
                    stored = _store_chunk(ledger, segment, offset, chunk, reading, result)
                except NotAloneError:  # seldom: an id has come with another content
                    stored = _store_chunk(ledger, segment, offset, chunk, reading, result, alone=True)
                if not stored:  # another ingester was there first
                    break
                offset = chunk.next_offset
            else:
                to_the_end = True


def _store_chunk(
    ledger: Engine,
    segment: Path,
    offset: int,
    chunk: Chunk,
    reading: Reader,
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
    with writing(ledger, packed and packed.staged_file) as connection:
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
