"""What a worker knows of the access store: keys, limits and grants, read anew when they have changed.

Requests look at memory only. A thread asks the store for its change number every `access_poll_seconds`, so
a key that is revoked is refused everywhere within that time and the time of one reading. While the store
is away what was known goes on to hold, for `access_stale_seconds`; then keys are refused with 503.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone

from sqlalchemy.engine import Engine

from serving.access.errors import ExpiredKeyError, InvalidKeyError
from serving.access.grants import approved
from serving.access.keys import Key, hash_of, keys_by_hash
from serving.access.store import changes, looking, open_store
from serving.errors import AccessUnavailableError
from serving.quotas.limits import Extra, set_limits

_PATIENCE_SECONDS = 1.0
_LOOK_AGAIN_SECONDS = 0.2  # an unknown key may be a new one, but no flood of them may flood the store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Known:
    """The store as it was at one change number."""

    changes: int = -1
    keys: Mapping[bytes, Key] = field(default_factory=dict)
    limits: Mapping[tuple[str, str], int] = field(default_factory=dict)
    grants: Mapping[tuple[str, str], tuple[Extra, ...]] = field(default_factory=dict)


class Access:
    """Safe for many threads. Make it in the process that uses it: its thread does not survive a fork."""

    def __init__(self, url: str, poll_seconds: float, stale_seconds: float) -> None:
        """Read the store once; one that is away is a `problem`, not an error."""
        self._url = url
        self._stale_seconds = stale_seconds
        self._store: Engine | None = None
        self._known = Known()
        self._problem: str | None = None
        self._read_at = float("-inf")
        self._reading = threading.Lock()
        self._stop = threading.Event()
        self.refresh()
        self._thread = threading.Thread(target=self._poll, args=(poll_seconds,), name="access", daemon=True)
        self._thread.start()

    def key(self, secret: str) -> Key:
        """The live key with this secret.

        Raises: InvalidKeyError; ExpiredKeyError; AccessUnavailableError: too long ago to know.
        """
        digest = hash_of(secret)
        found = self._known.keys.get(digest)
        if found is None and time.monotonic() - self._read_at > _LOOK_AGAIN_SECONDS:
            self.refresh()
            found = self._known.keys.get(digest)
        if time.monotonic() - self._read_at > self._stale_seconds:
            raise AccessUnavailableError("Keys can't be checked now.")
        if found is None:
            raise InvalidKeyError("The API key is unknown, or was revoked.")
        if found.expires_at is not None and found.expires_at <= datetime.now(timezone.utc):
            raise ExpiredKeyError(f"The API key expired at {found.expires_at:%Y-%m-%d %H:%M} UTC.")
        return found

    def known(self) -> Known:
        """All that is known now."""
        return self._known

    def store(self) -> Engine:
        """The store itself. Raises: AccessUnavailableError."""
        if self._store is None:
            self._store = open_store(self._url)
        return self._store

    def problem(self) -> str | None:
        """Why the store can't be read now, or None."""
        return self._problem

    def refresh(self) -> None:
        """Read what has changed since the last reading; beside another reading, wait a moment for that."""
        if not self._reading.acquire(timeout=_PATIENCE_SECONDS):
            return
        try:
            self._refresh()
        finally:
            self._reading.release()

    def close(self) -> None:
        """Stop looking."""
        self._stop.set()
        self._thread.join()
        if self._store is not None:
            self._store.dispose()

    def _refresh(self) -> None:
        started = time.monotonic()
        try:
            with looking(self.store()) as connection:
                number = changes(connection)
                if number != self._known.changes:
                    self._known = Known(
                        number, keys_by_hash(connection), set_limits(connection), approved(connection)
                    )
        except AccessUnavailableError as error:
            if self._problem is None:
                log.error("%s", error)  # noqa: TRY400 -- the message says it all
            self._problem = str(error)
            return
        if self._problem is not None:
            log.warning("the access store is back")
        self._problem = None
        self._read_at = started

    def _poll(self, seconds: float) -> None:
        while not self._stop.wait(seconds):
            try:
                self.refresh()
            except Exception:  # without this thread revoked keys would hold, and then none at all
                log.exception("looking for changes of keys, limits and grants failed")
