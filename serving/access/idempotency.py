"""Idempotency-Key: the same request asked again within a day gets the same answer, and is billed once.

Before the usage event of an attempt goes into the journal, the answer and that very event are kept in the
access store. So whatever dies when, one of three holds: nothing is kept, and nothing was billed: the next
attempt answers anew. Answer and event are kept, and the process died: the next attempt puts the same event
into the journal once more, where its id makes it one, and gives the answer. Or all is done. An attempt that
is under way is waited for; it is held by its process, which says so every few seconds.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from serving.access.errors import IdempotencyKeyError, IdempotencyKeyReusedError, StillRunningError
from serving.access.identity import Caller
from serving.access.known import Access
from serving.access.store import idempotent_answers, insert, using
from serving.errors import AccessUnavailableError
from serving.journal import Sink

KEPT = timedelta(days=1)
HOLD_SECONDS = 15.0  # a process that says nothing for so long is taken for dead
_LONGEST_KEY = 255
_LOOK_SECONDS = (0.02, 0.5)  # between looks at an attempt under way: at first, and at most
_SWEEP_SECONDS = 60.0

log = logging.getLogger(__name__)
_row = idempotent_answers.c


class Replayed(Exception):  # noqa: N818 -- no error: the answer is known already
    """The request was answered before."""

    def __init__(self, body: bytes) -> None:
        super().__init__("answered before")
        self.body = body


class Attempt:
    """A request that answers for its Idempotency-Key."""

    def __init__(self, owner: Idempotency, caller: str, key: str, request_id: str) -> None:
        self._owner = owner
        self._its = sa.and_(_row.caller == caller, _row.key == key, _row.attempt == request_id)
        self.id = request_id

    def keep(self, event: Mapping[str, Any], answer: bytes) -> None:
        """Keep the answer and its event, which then goes into the journal.

        Raises: StillRunningError: another attempt took over, so this one must not be billed.
            AccessUnavailableError.
        """
        self._owner.change(
            idempotent_answers.update()
            .where(self._its, _row.state == "running")
            .values(state="answered", event=orjson.dumps(event), answer=answer)
        )

    def done(self) -> None:
        """The event is durable. If that can't be noted, the next attempt finds out."""
        self._owner.forget(self)
        self._quietly(idempotent_answers.update().where(self._its).values(state="done"))

    def give_up(self) -> None:
        """It failed, and costs nothing: the next attempt answers anew."""
        self._owner.forget(self)
        self._quietly(idempotent_answers.delete().where(self._its, _row.state != "done"))

    def _quietly(self, change: sa.Update | sa.Delete) -> None:
        try:
            self._owner.change(change)
        except (AccessUnavailableError, StillRunningError) as error:
            log.warning("attempt %s: %s", self.id, error)


class Idempotency:
    """Safe for many threads. Make it in the process that uses it."""

    def __init__(self, access: Access, journal: Sink, wait_seconds: float) -> None:
        """`wait_seconds`: how long a request waits for another that is answering."""
        self._access = access
        self._journal = journal
        self._wait_seconds = wait_seconds
        self._running: dict[str, Attempt] = {}
        self._stop = threading.Event()
        self._sweep_at = 0.0
        self._thread = threading.Thread(target=self._beat, name="idempotency", daemon=True)
        self._thread.start()

    def begin(
        self, environ: Mapping[str, Any], caller: Caller, body: bytes, request_id: str
    ) -> Attempt | None:
        """The attempt to answer this request; None when it has no Idempotency-Key.

        Raises: Replayed: it was answered before. IdempotencyKeyError. IdempotencyKeyReusedError.
            StillRunningError: it is being answered, and was not within the time. AccessUnavailableError.
            JournalError: the event of its answer can't be recorded now.
        """
        key = environ.get("HTTP_IDEMPOTENCY_KEY")
        if key is None:
            return None
        if not 0 < len(key) <= _LONGEST_KEY or not key.isascii() or not key.isprintable():
            raise IdempotencyKeyError(f"Idempotency-Key must be 1-{_LONGEST_KEY} printable ASCII characters.")
        place = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}\n".encode("utf-8", "replace")
        digest = hashlib.sha256(place + body).digest()
        who = f"{caller.user}/{caller.project}"
        until = time.monotonic() + self._wait_seconds
        pause, longest = _LOOK_SECONDS
        while True:
            is_mine, found = self._claim(who, key, digest, request_id)
            if is_mine:
                attempt = self._running[request_id] = Attempt(self, who, key, request_id)
                return attempt
            if found is None:  # it was given up between two looks
                continue
            if found.request_sha256 != digest:
                raise IdempotencyKeyReusedError("Another request was sent with this Idempotency-Key today.")
            if found.state == "answered" and found.held_until <= _now():
                # Its process died: the event may be durable, or not. The same one again is one.
                self._journal.append(orjson.loads(found.event), self._wait_seconds)
                Attempt(self, who, key, found.attempt).done()
                raise Replayed(found.answer)
            if found.state == "done":
                raise Replayed(found.answer)
            if time.monotonic() + pause > until:
                raise StillRunningError("The first request with this Idempotency-Key is not answered yet.")
            time.sleep(pause)
            pause = min(2 * pause, longest)

    def change(self, statement: sa.Update | sa.Delete) -> None:
        """Change the one row of an attempt. Raises: StillRunningError: it is another's now."""
        with using(self._access.store()) as connection:
            if connection.execute(statement).rowcount != 1:
                raise StillRunningError("Another request with this Idempotency-Key took over.")

    def forget(self, attempt: Attempt) -> None:
        """Hold it no longer."""
        self._running.pop(attempt.id, None)

    def close(self) -> None:
        """Stop holding what is under way."""
        self._stop.set()
        self._thread.join()

    def _claim(self, who: str, key: str, digest: bytes, request_id: str) -> tuple[bool, sa.Row[Any] | None]:
        """Make the request's row, or take it over from a process that died; else the row as it is."""
        now = _now()
        its = sa.and_(_row.caller == who, _row.key == key)
        held_until = now + timedelta(seconds=HOLD_SECONDS)
        with using(self._access.store()) as connection:
            self._sweep(connection, now)
            new = insert(connection, idempotent_answers).values(
                caller=who,
                key=key,
                request_sha256=digest,
                attempt=request_id,
                state="running",
                held_until=held_until,
                asked_at=now,
            )
            if connection.execute(new.on_conflict_do_nothing()).rowcount == 1:
                return True, None
            over = sa.and_(_row.state == "running", _row.held_until <= now, _row.request_sha256 == digest)
            taken = idempotent_answers.update().where(its, over)
            if connection.execute(taken.values(attempt=request_id, held_until=held_until)).rowcount == 1:
                return True, None
            return False, connection.execute(sa.select(idempotent_answers).where(its)).one_or_none()

    def _sweep(self, connection: Connection, now: datetime) -> None:
        """Forget answers older than a day."""
        if time.monotonic() >= self._sweep_at:
            self._sweep_at = time.monotonic() + _SWEEP_SECONDS
            connection.execute(idempotent_answers.delete().where(_row.asked_at < now - KEPT))

    def _beat(self) -> None:
        """Say that the attempts of this process are under way; forget old answers though nobody asks."""
        while not self._stop.wait(HOLD_SECONDS / 3):
            running = list(self._running)
            if not running and time.monotonic() < self._sweep_at:
                continue
            try:
                with using(self._access.store()) as connection:
                    now = _now()
                    self._sweep(connection, now)
                    its = idempotent_answers.update().where(_row.attempt.in_(running))
                    connection.execute(its.values(held_until=now + timedelta(seconds=HOLD_SECONDS)))
            except AccessUnavailableError as error:
                log.warning("attempts can't be held: %s", error)
            except Exception:
                log.exception("attempts can't be held")


def _now() -> datetime:
    return datetime.now(timezone.utc)
