"""How far the ledger is behind the journal, for /metrics.

Read from the ledger beside the requests, by the same contract as quotas (`serving.quotas.past`): the column
`journal_offsets` says how far its readers have come in each segment. What stands behind that waits.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from serving.quotas.past import ledger_offsets
from tallybook.unread import unread

_LOOK_SECONDS = 10.0

log = logging.getLogger(__name__)


class JournalLag:
    """Looks now and then, in a thread of its own. Safe for many threads."""

    def __init__(self, ledger_url: str, journal_dir: Path) -> None:
        """Starts the thread: call it in the process that serves."""
        self._ledger_url = ledger_url
        self._journal_dir = journal_dir
        self._waiting: tuple[int, float | None] | None = None  # bytes, and since when
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="journal lag", daemon=True)
        self._thread.start()

    def told(self) -> tuple[int, float] | None:
        """Bytes that wait, and for how many seconds the oldest has; None while nobody knows."""
        waiting = self._waiting
        if waiting is None:
            return None
        size_bytes, since = waiting
        return size_bytes, 0.0 if since is None else max(0.0, time.time() - since)

    def look(self) -> None:
        """Ask the ledger now; one that is away leaves nothing known."""
        try:
            found = unread(ledger_offsets(self._ledger_url), self._journal_dir)
            self._waiting = (0, None) if found is None else (found.size_bytes, found.oldest.timestamp())
        except Exception as error:  # noqa: BLE001  whatever it is, the next look may know
            if self._waiting is not None:
                log.warning("how far the ledger is behind is not known: %s", " ".join(str(error).split()))
            self._waiting = None

    def close(self) -> None:
        """Stop looking."""
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        self.look()
        while not self._stop.wait(_LOOK_SECONDS):
            self.look()
