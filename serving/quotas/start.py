"""The quotas of a worker, as its settings want them, with what was used before counted in."""

from __future__ import annotations

import logging
import threading
from datetime import datetime, timezone

from serving.access.known import Access
from serving.quotas.contract import Quotas
from serving.quotas.in_memory import MemoryQuotas
from serving.quotas.limits import LimitBook
from serving.quotas.past import Past, read_past
from serving.quotas.unlimited import Unlimited
from serving.settings import ServingSettings

RETRY_SECONDS = 5.0  # between looks at a ledger that is away
_LEASE_SPARE_SECONDS = 5.0  # a lease outlasts the request's deadline, or its tokens could be promised twice

log = logging.getLogger(__name__)


def make_quotas(settings: ServingSettings, access: Access) -> Quotas:
    """Starts a thread where the ledger is away: call it in the process that serves."""
    if not settings.quotas:
        return Unlimited()
    limits = LimitBook(settings, access.known)
    lease_seconds = max(settings.quota_lease_seconds, settings.deadline_seconds + _LEASE_SPARE_SECONDS)
    if settings.redis_url is not None:
        from serving.quotas.in_redis import RedisQuotas  # a quarter of a second that one worker can spare

        shared = RedisQuotas(settings, limits, lease_seconds)
        threading.Thread(target=shared.catch_up, name="quotas", daemon=True).start()
        return shared
    return RememberingQuotas(settings, limits, lease_seconds)


class RememberingQuotas(MemoryQuotas):
    """Quotas in memory that begin with what was used before.

    While the ledger is away they begin with what the journal holds, say so, and count the rest as soon as
    the ledger can be read.
    """

    def __init__(self, settings: ServingSettings, limits: LimitBook, lease_seconds: float) -> None:
        super().__init__(limits, settings.zone, lease_seconds)
        self._settings = settings
        self._problem: str | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._remember()
        if self._problem is not None:
            self._thread = threading.Thread(target=self._retry, name="quotas", daemon=True)
            self._thread.start()

    def problem(self) -> str | None:
        """Why not all that was used before is counted, or None."""
        return self._problem

    def close(self) -> None:
        """Stop looking for the ledger."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _remember(self) -> None:
        settings = self._settings
        now = datetime.fromtimestamp(self._clock(), timezone.utc)
        before = self.counted(now, settings.zone)
        past = read_past(settings.ledger_url, settings.journal_dir, settings.zone, now)
        self.absorb(past, before)
        _tell(past, self._problem)
        self._problem = past.problem

    def _retry(self) -> None:
        while self._problem is not None and not self._stop.wait(RETRY_SECONDS):
            self._remember()


def _tell(past: Past, known: str | None) -> None:
    if past.problem is not None and known is None:
        log.error("quotas of %s: %s", past.day, past.problem)
    elif past.problem is None and known is not None:
        log.warning("quotas of %s: the ledger is back, and counted", past.day)
