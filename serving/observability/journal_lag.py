"""How far the ledger is behind the journal, for /metrics.

Read from the ledger beside the requests, by the same contract as quotas (`serving.quotas.past`): the column
`journal_offsets` says how far its readers have come in each segment. What stands behind that waits.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

import orjson

from serving.quotas.past import ledger_offsets
from tallybook.segments import SUFFIX
from tallybook.usage import InvalidEventError, instant

_LOOK_SECONDS = 10.0
_FIRST_LINE_BYTES = 1 << 16

log = logging.getLogger(__name__)


class Unread(NamedTuple):
    """Bytes of the journal that the ledger does not have, and the time of the oldest event among them."""

    size_bytes: int
    oldest: datetime | None


def unread(offsets: Mapping[str, int], journal_dir: Path) -> Unread:
    """What is in the journal behind these offsets; a segment that is gone meanwhile was read."""
    size_bytes, oldest = 0, None
    for segment in journal_dir.glob(f"*{SUFFIX}"):
        offset = offsets.get(segment.name, 0)
        try:
            missing = segment.stat().st_size - offset
            if missing > 0:
                since = _since(segment, offset)
                size_bytes += missing
                oldest = since if oldest is None else min(oldest, since)
        except FileNotFoundError:
            continue
    return Unread(size_bytes, oldest)


class JournalLag:
    """Looks now and then, in a thread of its own. Safe for many threads."""

    def __init__(self, ledger_url: str, journal_dir: Path) -> None:
        """Starts the thread: call it in the process that serves."""
        self._ledger_url = ledger_url
        self._journal_dir = journal_dir
        self._unread: Unread | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="journal lag", daemon=True)
        self._thread.start()

    def told(self) -> tuple[int, float] | None:
        """Bytes that wait, and for how many seconds the oldest has; None while nobody knows."""
        found = self._unread
        if found is None:
            return None
        seconds = 0.0 if found.oldest is None else time.time() - found.oldest.timestamp()
        return found.size_bytes, max(0.0, seconds)

    def look(self) -> None:
        """Ask the ledger now; one that is away leaves nothing known."""
        try:
            self._unread = unread(ledger_offsets(self._ledger_url), self._journal_dir)
        except Exception as error:  # noqa: BLE001  whatever it is, the next look may know
            if self._unread is not None:
                log.warning("how far the ledger is behind is not known: %s", " ".join(str(error).split()))
            self._unread = None

    def close(self) -> None:
        """Stop looking."""
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        self.look()
        while not self._stop.wait(_LOOK_SECONDS):
            self.look()


def _since(segment: Path, offset: int) -> datetime:
    """The time of the event at this place; what is none is as old as its segment's last change."""
    with segment.open("rb") as file:
        file.seek(offset)
        line = file.readline(_FIRST_LINE_BYTES)
        changed = datetime.fromtimestamp(os.fstat(file.fileno()).st_mtime, timezone.utc)
    try:
        return instant(orjson.loads(line)["time"])
    except (orjson.JSONDecodeError, InvalidEventError, KeyError, TypeError):
        return changed
