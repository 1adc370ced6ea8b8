"""What waits in the journal: segments that ingest has not read to their end, and since when."""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import NamedTuple

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing.tables import journal_offsets
from tallybook.segments import SUFFIX
from tallybook.usage import InvalidEventError, instant

_FIRST_LINE_BYTES = 1 << 16
_WRONG_CLOCK = timedelta(days=30)  # so long before its segment's last change no event was written


class Unread(NamedTuple):
    """How many segments have unread bytes, how many, and the time of the oldest event among them.

    What is no event is as old as its segment's last change, and so is an event of a clock that was wrong.
    """

    segments: int
    unread_bytes: int
    oldest: datetime | None
    oldest_segment: str


def unread(connection: Connection, journal_dir: Path) -> Unread | None:
    """What ingest has not read yet; None: nothing."""
    reached = {row.segment: row.offset_bytes for row in connection.execute(sa.select(journal_offsets))}
    waiting: list[tuple[datetime, str, int]] = []
    for segment in sorted(journal_dir.glob(f"*{SUFFIX}")):
        offset = reached.get(segment.name, 0)
        try:
            missing = segment.stat().st_size - offset
            if missing > 0:
                waiting.append((_since(segment, offset), segment.name, missing))
        except FileNotFoundError:  # gone while we looked
            continue
    if not waiting:
        return None
    oldest, name, _ = min(waiting)
    return Unread(len(waiting), sum(missing for *_, missing in waiting), oldest, name)


def _since(segment: Path, offset: int) -> datetime:
    with segment.open("rb") as file:
        file.seek(offset)
        line = file.readline(_FIRST_LINE_BYTES)
        changed = datetime.fromtimestamp(os.fstat(file.fileno()).st_mtime, timezone.utc)
    try:
        time = instant(orjson.loads(line)["time"])
    except (orjson.JSONDecodeError, InvalidEventError, KeyError, TypeError):
        return changed
    # Not simply the later of the two: a segment that is written to all the time would never be late.
    return time if changed - time < _WRONG_CLOCK else changed
