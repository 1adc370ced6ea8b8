"""The journal: a usage event is on disk when `append` returns, and never will be when it raises.

Request threads hand their event over and wait; one thread commits all that wait with one sync. A commit
that fails is retracted, its requests are refused, its segment is closed and the next event starts a fresh
one. A retraction that fails as well is tried again until it works: meanwhile the segment stays locked, so
that no reader believes the refused lines, and every request is refused. Only a process that dies in that
state, on a disk that takes neither a truncation nor a line, leaves refused lines to be believed; their
ids are in its log.

Make the journal in the process that uses it: its thread does not survive a fork.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import orjson

from serving.errors import JournalError
from serving.segment import SegmentWriter

RETRY_SECONDS = 1.0  # between tries to recover
STALL_SECONDS = 5.0  # a commit that takes longer is a fault: new requests are refused until it ends
BATCH_EVENTS = 1024

log = logging.getLogger(__name__)


class Sink(Protocol):
    """Where usage events go before an answer leaves: the journal, or Kafka. Safe for many threads."""

    def append(self, record: Mapping[str, Any], timeout_seconds: float) -> None:
        """Return when the record is durable. Raises: JournalError: it is not, and never will be."""
        ...

    def waiting(self) -> int:
        """How many events wait to be durable."""
        ...

    def problem(self) -> str | None:
        """Why an event would not be taken now, or None."""
        ...

    def close(self) -> None:
        """Wait for what is under way."""
        ...


class _Entry:
    """An event on its way. Who acquires `claim` decides: the committer to write it, its waiter to give up."""

    __slots__ = ("claim", "done", "line", "refusal")

    def __init__(self, line: bytes) -> None:
        self.line = line
        self.refusal: str | None = None
        self.claim = threading.Lock()
        self.done = threading.Lock()
        self.done.acquire()


class Journal:
    """Appends usage events to segments in one folder, durably. Safe for many threads."""

    def __init__(
        self,
        directory: Path,
        segment_bytes: int,
        on_commit: Callable[[int, int], None] = lambda events, size_bytes: None,
    ) -> None:
        """Open the first segment; a folder that can't be written is a `problem`, not an error.

        Args:
            segment_bytes: a segment that has reached this size is followed by a fresh one.
            on_commit: called with the events and bytes of each durable batch, in the journal's thread;
                it must not raise.
        """
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._on_commit = on_commit
        self._queue: SimpleQueue[_Entry | None] = SimpleQueue()
        self._segment: SegmentWriter | None = None
        self._unretracted = False
        self._problem: str | None = None
        self._retry_at = 0.0
        self._busy_since: float | None = None
        self._closed = False
        self._recover()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def append(self, record: Mapping[str, Any], timeout_seconds: float) -> None:
        """Return when the record is durable.

        The timeout bounds the wait for a place in a batch. Once its batch is being written, a record's
        fate is always awaited: a sync can't be called back, and a refusal must be the truth.
        Raises: JournalError: the record is not in the journal and never will be.
        """
        if self._closed:
            raise JournalError("The journal is closed.")
        entry = _Entry(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
        self._queue.put(entry)
        if not entry.done.acquire(timeout=max(0.0, timeout_seconds)):
            if entry.claim.acquire(blocking=False):
                raise JournalError("The journal could not take the usage event in time.")
            entry.done.acquire()
        if entry.refusal is not None:
            raise JournalError("The usage event could not be recorded.")

    def waiting(self) -> int:
        """How many events wait for their batch."""
        return self._queue.qsize()

    def problem(self) -> str | None:
        """Why an event would not be taken now, or None."""
        if self._closed:
            return "the journal is closed"
        since = self._busy_since
        if since is not None and (seconds := time.monotonic() - since) > STALL_SECONDS:
            return f"the disk has not answered for {seconds:.0f} s"
        return self._problem

    def close(self) -> None:
        """Commit what waits, then release the segment."""
        if self._closed:
            return
        self._closed = True
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        open_for_more = True
        while open_for_more:
            try:
                first = self._queue.get(timeout=RETRY_SECONDS if self._problem else None)
            except Empty:
                self._recover()
                continue
            batch, open_for_more = self._gather(first)
            if batch:
                self._settle(batch)
        self._retract()
        if self._segment is not None and not self._unretracted:
            self._segment.close()

    def _gather(self, first: _Entry | None) -> tuple[list[_Entry], bool]:
        """All that wait, less those who gave up; and whether more may come."""
        batch: list[_Entry] = []
        entry = first
        while entry is not None:
            if entry.claim.acquire(blocking=False):
                batch.append(entry)
            if len(batch) == BATCH_EVENTS:
                return batch, True
            try:
                entry = self._queue.get_nowait()
            except Empty:
                return batch, True
        return batch, False

    def _settle(self, batch: list[_Entry]) -> None:
        """Commit or refuse a batch, tell its waiters, and only then do what could go wrong besides."""
        self._busy_since = time.monotonic()
        if self._problem is not None and self._busy_since >= self._retry_at:
            self._recover()
        if self._segment is None or self._unretracted:
            refusal = self._problem
        else:
            refusal = self._commit(self._segment, [entry.line for entry in batch])
        self._busy_since = None
        for entry in batch:
            entry.refusal = refusal
            entry.done.release()
        if refusal is None:
            self._on_commit(len(batch), sum(len(entry.line) for entry in batch))
            self._rotate()

    def _commit(self, segment: SegmentWriter, lines: list[bytes]) -> str | None:
        """None when every line is durable, or why every line is refused."""
        try:
            segment.commit(lines)
        except (OSError, MemoryError) as error:
            self._fail(f"a commit failed: {error}")
            self._unretracted = True
            self._retract()
            if self._unretracted:
                ids = [orjson.loads(line)["id"] for line in lines]
                log.critical("refused events still stand in %s: %s", segment.path.name, ids)
            return self._problem
        return None

    def _rotate(self) -> None:
        segment = self._segment
        if segment is not None and (segment.worn or segment.size_bytes >= self._segment_bytes):
            segment.close()
            self._segment = None
            self._recover()

    def _retract(self) -> None:
        """Take back a failed commit, if there is one and the disk allows it."""
        if self._segment is None or not self._unretracted:
            return
        try:
            self._segment.retract()
        except OSError as error:
            self._fail(f"a failed commit can't be taken back: {error}")
            return
        self._segment.close()
        self._segment = None
        self._unretracted = False

    def _recover(self) -> None:
        """Get a segment to write to, or note why there is none."""
        self._retract()
        if self._unretracted:
            return
        try:
            self._segment = SegmentWriter(self._directory)
        except OSError as error:
            self._fail(f"no segment can be begun: {error}")
            return
        if self._problem is not None:
            log.warning("the journal is writable again: %s", self._segment.path.name)
            self._problem = None

    def _fail(self, problem: str) -> None:
        if self._problem is None:
            log.error("the journal is not writable: %s", problem)
        self._problem = problem
        self._retry_at = time.monotonic() + RETRY_SECONDS
