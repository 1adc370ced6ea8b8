"""Quotas of many workers, counted in Redis; see `serving.quotas.redis_scripts` for what each step does there.

Redis away means that nothing can be promised: requests get 503. What is settled meanwhile is kept, and told
as soon as Redis answers again. After a Redis that did not answer in time nobody waits again; a thread looks
whether it does. A Redis that has lost its counts is filled from ledger and journal, by one
worker, before anything is reserved.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from itertools import chain
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from serving.access.identity import Caller
from serving.errors import QuotaUnavailableError
from serving.quotas import redis_scripts
from serving.quotas.contract import (
    MINUTE_SECONDS,
    Counts,
    Lease,
    Periods,
    Standing,
    ratelimit_headers,
    refusal,
    standings,
)
from serving.quotas.limits import LimitBook, requester
from serving.quotas.past import Past, read_past
from serving.settings import ServingSettings
from tallybook.usage import new_event_id

PREFIX = "{tallybook:quota}:"
PATIENCE_SECONDS = 2.0  # for another worker that fills it
LOOK_SECONDS = 0.2  # at a Redis that hangs, so often
BUILDING_SECONDS = 120  # a worker that takes longer to read the ledger is taken for dead
INCOMPLETE_SECONDS = 5.0  # without the ledger counts hold for so long; then it is asked again
_KEPT_SECONDS = 2 * 86_400  # counts of a period are kept beyond its end, for clocks that differ
_REMEMBERED = 10_000
_AT_ONCE = 1000
_UNAVAILABLE = "Quotas can't be checked now, so nothing is served."

log = logging.getLogger(__name__)


class RedisQuotas:
    """Safe for many threads; every worker and machine with this Redis shares its counts."""

    def __init__(
        self,
        settings: ServingSettings,
        limits: LimitBook,
        lease_seconds: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Asks nothing of Redis yet: what is away later may be away now. Leases go by Redis's own clock.

        Raises: ValueError: the address can't be read.
        """
        assert settings.redis_url is not None  # noqa: S101 -- the caller has looked
        self._settings = settings
        self._limits = limits
        self._clock = clock
        self._zone = settings.zone
        self.lease_milliseconds = int(lease_seconds * 1000)
        self._redis = redis.Redis.from_url(
            settings.redis_url.get_secret_value(),
            socket_timeout=settings.redis_timeout_seconds,
            socket_connect_timeout=settings.redis_timeout_seconds,
            # Of a connection that was idle too long; each step may be said twice.
            retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
        )
        script = self._redis.register_script
        self._reserve = script(redis_scripts.RESERVE)
        self._settle = script(redis_scripts.SETTLE)
        self._renew = script(redis_scripts.RENEW)
        self._standing = script(redis_scripts.STANDING)
        self._count = script(redis_scripts.COUNT)
        self._held = script(redis_scripts.HELD)
        self._begin_building = script(redis_scripts.BEGIN_BUILDING)
        self._absorb = script(redis_scripts.ABSORB)
        self._end_building = script(redis_scripts.END_BUILDING)
        self._periods = Periods.at(clock(), self._zone)
        self._seen: OrderedDict[tuple[str, str, str], Counts] = OrderedDict()
        self._untold: deque[list[object]] = deque()
        self._lock = threading.Lock()
        self._problem: str | None = None
        self._hangs = False
        self._stop = threading.Event()

    def reserve(self, caller: Caller, model: str, most_tokens: int) -> _Lease:
        """See `serving.quotas.contract.Quotas`."""
        limits = self._limits.of(caller)
        now, periods = self._now()
        lease = _Lease(self, caller)
        subject = _subject(caller)
        minute = int(now // MINUTE_SECONDS)
        args = [lease.id, *subject, *_names(periods), minute, most_tokens, *limits, self.lease_milliseconds]
        self._tell_untold()
        answer = self._ask(self._reserve, args)
        if not answer:
            self._build()
            answer = self._ask(self._reserve, args)
            if not answer:
                raise QuotaUnavailableError("What was used before is being counted.")
        held, found = answer
        counts = Counts(*found)
        if not held:
            raise refusal(caller, counts, limits, periods, now, most_tokens)
        self._remember(subject, counts, most_tokens)
        return lease

    def count(self, caller: Caller) -> None:
        """See `serving.quotas.contract.Quotas`."""
        limits = self._limits.of(caller)
        now, periods = self._now()
        counts = self._counts(self._count, caller, now, periods)
        if counts.requests >= limits.requests:
            raise refusal(caller, counts, limits, periods, now, 0)

    def headers(self, caller: Caller) -> Mapping[str, str]:
        """As Redis told when the caller's last request of this worker was reserved, which asks it no more."""
        counts = self._seen.get(_subject(caller), Counts())
        used = (
            counts.user_day + counts.user_reserved,
            counts.project_month + counts.project_reserved,
            counts.requests,
        )
        now, periods = self._now()
        return ratelimit_headers(used, self._limits.of(caller), periods, now)

    def standing(self, caller: Caller) -> Mapping[str, Standing]:
        """See `serving.quotas.contract.Quotas`. Raises: QuotaUnavailableError."""
        now, periods = self._now()
        counts = self._counts(self._standing, caller, now, periods)
        return standings(counts, self._limits.of(caller), periods.resets_in(now))

    def reserved_tokens(self) -> int:
        """Tokens held by all requests of all workers. Raises: QuotaUnavailableError."""
        return int(self._ask(self._held, []))

    def problem(self) -> str | None:
        """Why nothing is reserved, or not all that was used before is counted; or None."""
        return self._problem

    def close(self) -> None:
        """Tell Redis what it was not told yet, if it answers, and let it go."""
        try:
            self._tell_untold()
        except QuotaUnavailableError:
            log.error("Redis was never told of %s settled requests", len(self._untold))  # noqa: TRY400
        self._stop.set()
        self._redis.close()

    def end(self, lease: _Lease, used_tokens: int) -> None:
        """Settle a lease, now or as soon as Redis answers."""
        _, periods = self._now()
        user, project, _ = _subject(lease.caller)
        ends = (int(periods.until) + _KEPT_SECONDS, int(periods.month_until) + _KEPT_SECONDS)
        self._untold.append([lease.id, user, project, *_names(periods), used_tokens, *ends])
        try:
            self._tell_untold()
        except QuotaUnavailableError:
            return

    def renew(self, lease: _Lease) -> None:
        """Let a lease begin anew; one that Redis can't be told of ends by itself."""
        try:
            self._ask(self._renew, [lease.id, self.lease_milliseconds])
        except QuotaUnavailableError:
            return

    def catch_up(self) -> None:
        """Count what is durable and was never settled, because the worker that had it was killed.

        For every worker that begins: its predecessor may be the one. Never counts too much.
        """
        try:
            if self._redis.exists(f"{PREFIX}built"):
                self._read_and_fill()
        except (redis.RedisError, QuotaUnavailableError) as error:
            log.error("what was used before is not counted yet: %s", error)  # noqa: TRY400

    def _counts(self, script: Any, caller: Caller, now: float, periods: Periods) -> Counts:
        args = [*_subject(caller), *_names(periods), int(now // MINUTE_SECONDS)]
        return Counts(*self._ask(script, args))

    def _tell_untold(self) -> None:
        while self._untold:
            try:
                args = self._untold.popleft()
            except IndexError:
                return
            try:
                self._ask(self._settle, args)
            except QuotaUnavailableError:
                self._untold.appendleft(args)
                raise

    def _ask(self, script: Any, args: Iterable[object]) -> Any:
        if self._hangs:
            raise QuotaUnavailableError(_UNAVAILABLE)
        try:
            answer = script(keys=[PREFIX], args=list(args))
        except redis.RedisError as error:
            if self._problem is None:
                log.error("Redis does not answer: %s", error)  # noqa: TRY400 -- the message says it all
            self._problem = f"Redis does not answer: {error}"
            if isinstance(error, redis.TimeoutError):
                self._look_again()
            raise QuotaUnavailableError(_UNAVAILABLE) from None
        if self._problem is not None and self._problem.startswith("Redis"):
            log.warning("Redis answers again")
            self._problem = None
        return answer

    def _look_again(self) -> None:
        """Wait for no answer until Redis gives one again, or is plainly not there."""
        with self._lock:
            if self._hangs:
                return
            self._hangs = True
        threading.Thread(target=self._look, name="quotas: Redis hangs", daemon=True).start()

    def _look(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            try:
                self._redis.ping()
            except redis.TimeoutError:
                continue
            except redis.RedisError:
                pass
            break
        self._hangs = False

    def _build(self) -> None:
        """Fill Redis with what was used before, or wait a moment for the worker that does."""
        me = secrets.token_hex(8)
        if not self._ask(self._begin_building, [me, BUILDING_SECONDS * 1000]):
            until = time.monotonic() + PATIENCE_SECONDS
            while time.monotonic() < until and not self._built():
                time.sleep(0.02)
            return
        past = self._read_and_fill()
        if past.problem is not None and self._problem is None:
            log.error("quotas of %s: %s", past.day, past.problem)
        self._problem = past.problem
        holds = 0 if past.problem is None else int(INCOMPLETE_SECONDS * 1000)
        self._ask(self._end_building, [me, holds])

    def _read_and_fill(self) -> Past:
        settings = self._settings
        moment = datetime.fromtimestamp(self._clock(), timezone.utc)
        past = read_past(settings.ledger_url, settings.journal_dir, self._zone, moment)
        self._fill(past, Periods.at(moment.timestamp(), self._zone))
        return past

    def _fill(self, past: Past, periods: Periods) -> None:
        for kind, period, used, until in (
            ("user", past.day, past.users, periods.until),
            ("project", past.month, past.projects, periods.month_until),
        ):
            named = [(f"{kind}:{period}:{name}", tokens) for name, tokens in used.items()]
            for start in range(0, len(named), _AT_ONCE):
                some = chain.from_iterable(named[start : start + _AT_ONCE])
                self._ask(self._absorb, [int(until) + _KEPT_SECONDS, *some])

    def _built(self) -> bool:
        try:
            return bool(self._redis.exists(f"{PREFIX}built"))
        except redis.RedisError:
            return False

    def _now(self) -> tuple[float, Periods]:
        now = self._clock()
        periods = self._periods
        if not periods.hold_at(now):
            periods = self._periods = Periods.at(now, self._zone)
        return now, periods

    def _remember(self, subject: tuple[str, str, str], before: Counts, most_tokens: int) -> None:
        with self._lock:
            self._seen[subject] = before._replace(
                user_reserved=before.user_reserved + most_tokens,
                project_reserved=before.project_reserved + most_tokens,
                requests=before.requests + 1,
            )
            self._seen.move_to_end(subject)
            if len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)


class _Lease(Lease):
    """What one request holds."""

    __slots__ = ("caller", "id")

    def __init__(self, quotas: RedisQuotas, caller: Caller) -> None:
        self._quotas = quotas
        self._ended = False
        self.caller = caller
        self.id = new_event_id()


def _subject(caller: Caller) -> tuple[str, str, str]:
    return caller.user, caller.project, requester(caller)


def _names(periods: Periods) -> tuple[str, str]:
    return periods.day.isoformat(), periods.month.isoformat()
