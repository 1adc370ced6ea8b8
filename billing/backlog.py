"""What the journal still holds of days that are over: a day whose events wait is not complete."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import orjson
from sqlalchemy.engine import Engine

from billing.offsets import offset_of
from tallybook.segments import SUFFIX

_LOOKED_AT = 1 << 16  # bytes of what is unread: its first events are its oldest


def behind(ledger: Engine, journal_dir: Path, before: datetime) -> list[str]:
    """Segments in which events from before this moment wait behind the ledger's offset, in words.

    Right after an ingest these are batches that are being written: a matter of milliseconds.
    """
    waiting = []
    for segment in sorted(journal_dir.glob(f"*{SUFFIX}")):
        offset = offset_of(ledger, segment.name)
        unread = segment.stat().st_size - offset
        if unread > 0 and _is_older(segment, offset, before):
            waiting.append(f"{segment.name}: {unread:,} bytes unread")
    return waiting


def _is_older(segment: Path, offset: int, before: datetime) -> bool:
    """Whether the first unread event is from before; what can't be read yet may be."""
    with segment.open("rb") as file:
        file.seek(offset)
        first, end, _ = file.read(_LOOKED_AT).partition(b"\n")
    try:
        return not end or datetime.fromisoformat(orjson.loads(first)["time"].replace("Z", "+00:00")) < before
    except (ValueError, TypeError, KeyError, AttributeError):
        return True
