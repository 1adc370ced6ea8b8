"""What waits in the journal: segments that the ledger's readers have not read to their end; since when."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import NamedTuple

from tallybook.segments import SUFFIX
from tallybook.usage import InvalidEventError, instant

_FIRST_LINE_BYTES = 1 << 16
_WRONG_CLOCK = timedelta(days=30)  # so long before its segment's last change no event was written


class Unread(NamedTuple):
    """How many segments have unread bytes, how many, and the time of the oldest event among them.

    What is no event is as old as its segment's last change, and so is an event of a clock that was wrong.
    """

    segments: int
    size_bytes: int
    oldest: datetime
    oldest_segment: str


def unread(offsets: Mapping[str, int], journal_dir: Path) -> Unread | None:
    """What stands behind these offsets, by the segments' names; None: nothing."""
    waiting: list[tuple[datetime, str, int]] = []
    for segment in sorted(journal_dir.glob(f"*{SUFFIX}")):
        offset = offsets.get(segment.name, 0)
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
        time = instant(json.loads(line)["time"])
    except (ValueError, InvalidEventError, KeyError, TypeError, RecursionError):
        return changed
    # Not simply the later of the two: a segment that is written to all the time would never be late.
    return time if changed - time < _WRONG_CLOCK else changed
