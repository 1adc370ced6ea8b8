"""How far each segment of the journal was read, and every step on the way there."""

from __future__ import annotations

from collections.abc import Container

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from billing.errors import AuditError
from billing.ledger import insert
from billing.tables import event_batches, journal_offsets, journal_reads


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
    if moved.rowcount != 1:
        return False
    step = insert(connection, journal_reads).values(segment=segment, offset_bytes=since, next_offset_bytes=to)
    connection.execute(step.on_conflict_do_nothing())
    return True


def offset_of(ledger: Engine, segment: str) -> int:
    """The offset that the ledger has reached in a segment; 0 before the first batch."""
    query = sa.select(journal_offsets.c.offset_bytes).where(journal_offsets.c.segment == segment)
    with ledger.connect() as connection:
        return connection.scalar(query) or 0


def prove_offsets(connection: Connection, retried: Container[tuple[str, int]]) -> None:
    """Prove that every segment was read without a gap up to its offset, and every batch in one of the steps.

    Args:
        retried: segment and offset of each line that was set aside and stored later.
    Raises: AuditError: an offset or a step was altered, removed or put in (code offset_altered), named by its
        segment; or a batch is of no step (event_altered), named by its number.
    """
    read = journal_reads.c
    reached: dict[str, int] = {}
    steps = sa.select(journal_reads).order_by(read.segment, read.offset_bytes)
    for step in connection.execute(steps, execution_options={"yield_per": 1000}):
        so_far = reached.get(step.segment, 0)
        if step.offset_bytes != so_far or step.next_offset_bytes <= so_far:
            raise AuditError(
                "offset_altered",
                f"{step.segment} was read up to byte {so_far}, but the next step is from byte "
                f"{step.offset_bytes} to {step.next_offset_bytes}",
            )
        reached[step.segment] = step.next_offset_bytes
    kept = {row.segment: row.offset_bytes for row in connection.execute(sa.select(journal_offsets))}
    for segment in sorted(kept.keys() | reached.keys()):
        if kept.get(segment) != reached.get(segment, 0):
            raise AuditError(
                "offset_altered",
                f"{segment} was read up to byte {reached.get(segment, 0)}, but its offset is "
                f"{kept.get(segment, 'missing')}",
            )
    batch = event_batches.c
    of_a_step = sa.exists().where(read.segment == batch.segment, read.offset_bytes == batch.offset_bytes)
    strays = sa.select(batch.id, batch.day, batch.segment, batch.offset_bytes).where(~of_a_step)
    for stray in connection.execute(strays.order_by(batch.id)):
        if (stray.segment, stray.offset_bytes) not in retried:
            where = f"{stray.segment} at byte {stray.offset_bytes}"
            raise AuditError(
                "event_altered", f"batch {stray.id} of {stray.day} is of {where}, where nothing was read"
            )
