"""What a caller may still use: reserved before a request is dispatched, settled when its tokens are known.

Four quotas hold at once: tokens a billing day of the user, tokens a calendar month of the project, requests a
minute and requests at once of the API key (of the user, where there is no key). Periods are those of
`tallybook.calendar`, so a quota's day is the bill's; a minute is one of the clock.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import date, datetime, timezone, tzinfo
from typing import Any, NamedTuple, Protocol

from serving.access.errors import (
    ConcurrentExceededError,
    ProjectMonthExceededError,
    RequestsExceededError,
    UserDayExceededError,
)
from serving.access.identity import Caller
from serving.errors import QuotaExceededError
from serving.quotas.limits import CONCURRENT, PROJECT_MONTH, REQUESTS, UNLIMITED, USER_DAY, Limits
from tallybook.calendar import billing_day, day_interval, month_start, next_month

MINUTE_SECONDS = 60
_SOON_SECONDS = 1  # when what is missing is only reserved: a request under way may give it back


class Reservation(Protocol):
    """Tokens held for one request. One of `settle` and `release` ends it; what comes after that does nothing.

    A reservation is a lease: one that nobody ends is given back when its time is over.
    """

    def settle(self, total_tokens: int) -> None:
        """Count what the request used, once its event is durable, and give the rest back.

        Counted also when the lease is over, for it was used.
        """
        ...

    def release(self) -> None:
        """Give all of it back: the request failed and costs nothing."""
        ...

    def renew(self) -> None:
        """Hold it for another lease time; for answers that are streamed for long."""
        ...


class Ends(Protocol):
    """Where leases come from."""

    def end(self, lease: Any, used_tokens: int) -> None:
        """Give back what it holds, and count what was used."""
        ...

    def renew(self, lease: Any) -> None:
        """Let it begin anew."""
        ...


class Lease:
    """A `Reservation` that ends once; what makes one says what it holds, and sets `_quotas` and `_ended`."""

    __slots__ = ("_ended", "_quotas")
    _quotas: Ends
    _ended: bool

    def settle(self, total_tokens: int) -> None:
        """See `Reservation`."""
        if not self._ended:
            self._ended = True
            self._quotas.end(self, total_tokens)

    def release(self) -> None:
        """See `Reservation`."""
        self.settle(0)

    def renew(self) -> None:
        """See `Reservation`."""
        self._quotas.renew(self)


class Quotas(Protocol):
    """Safe for many threads."""

    def reserve(self, caller: Caller, model: str, most_tokens: int) -> Reservation:
        """Hold the most that a request may use: its input and all that may be generated.

        It counts as a request of this minute, held or refused.
        Raises: QuotaExceededError: a quota has not so much left. QuotaUnavailableError.
        """
        ...

    def count(self, caller: Caller) -> None:
        """Count a request of this minute that ended before it was reserved.

        Raises: QuotaExceededError: there were too many by then. QuotaUnavailableError.
        """
        ...

    def headers(self, caller: Caller) -> Mapping[str, str]:
        """The x-ratelimit-* headers of an answer to this caller."""
        ...

    def standing(self, caller: Caller) -> Mapping[str, Standing]:
        """What each quota of this caller allows, and what of it is used; only those that are limited."""
        ...

    def reserved_tokens(self) -> int:
        """Tokens held by all requests under way, for the metrics."""
        ...

    def problem(self) -> str | None:
        """What is wrong with the counters now, or None."""
        ...

    def close(self) -> None:
        """Let go of what they hold."""
        ...


class Standing(NamedTuple):
    """One quota of one caller: tokens, or requests."""

    limit: int
    used: int
    reserved: int
    resets_in_seconds: int

    @property
    def remaining(self) -> int:
        """What is left, never below 0."""
        return max(0, self.limit - self.used - self.reserved)


class Periods(NamedTuple):
    """The day and the month that a moment lies in, and from when to when (seconds since 1970) that holds."""

    day: date
    month: date
    since: float
    until: float
    month_until: float

    @classmethod
    def at(cls, seconds: float, zone: tzinfo) -> Periods:
        """The periods of a moment."""
        day = billing_day(datetime.fromtimestamp(seconds, timezone.utc), zone)
        interval = day_interval(day, zone)
        month_end = day_interval(next_month(day), zone).start
        return cls(
            day,
            month_start(day),
            interval.start.timestamp(),
            interval.end.timestamp(),
            month_end.timestamp(),
        )

    def hold_at(self, seconds: float) -> bool:
        """Whether they are those of this moment; false also when the clock was set back."""
        return self.since <= seconds < self.until

    def resets_in(self, seconds: float) -> dict[str, int]:
        """In how many seconds, at least 1, each quota begins anew."""
        return {
            USER_DAY: max(1, math.ceil(self.until - seconds)),
            PROJECT_MONTH: max(1, math.ceil(self.month_until - seconds)),
            REQUESTS: max(1, math.ceil(MINUTE_SECONDS - seconds % MINUTE_SECONDS)),
            CONCURRENT: _SOON_SECONDS,
        }


class Counts(NamedTuple):
    """What the counters of a caller stand at."""

    user_day: int = 0
    user_reserved: int = 0
    project_month: int = 0
    project_reserved: int = 0
    requests: int = 0
    concurrent: int = 0


def _exceeded(counts: Counts, limits: Limits, most_tokens: int) -> str:
    """The quota that has no room for a request of so many tokens, the one that lasts least if several."""
    if counts.requests >= limits.requests:
        return REQUESTS
    if counts.concurrent >= limits.concurrent:
        return CONCURRENT
    if counts.user_day + counts.user_reserved + most_tokens > limits.user_day:
        return USER_DAY
    return PROJECT_MONTH


def standings(counts: Counts, limits: Limits, resets_in: Mapping[str, int]) -> dict[str, Standing]:
    """Each quota that is limited."""
    rows = {
        USER_DAY: (limits.user_day, counts.user_day, counts.user_reserved),
        PROJECT_MONTH: (limits.project_month, counts.project_month, counts.project_reserved),
        REQUESTS: (limits.requests, counts.requests, 0),
        CONCURRENT: (limits.concurrent, counts.concurrent, 0),
    }
    return {name: Standing(*row, resets_in[name]) for name, row in rows.items() if row[0] < UNLIMITED}


_TOLD: dict[str, tuple[type[QuotaExceededError], str]] = {
    USER_DAY: (UserDayExceededError, "tokens a day of the user {user}"),
    PROJECT_MONTH: (ProjectMonthExceededError, "tokens a month of the project {project}"),
    REQUESTS: (RequestsExceededError, "requests a minute"),
    CONCURRENT: (ConcurrentExceededError, "requests at once"),
}


def refusal(
    caller: Caller, counts: Counts, limits: Limits, periods: Periods, now: float, most_tokens: int
) -> QuotaExceededError:
    """What a caller is told whose request has no room in a quota; `counts` are those before it."""
    quota = _exceeded(counts, limits, most_tokens)
    standing = standings(counts, limits, periods.resets_in(now))[quota]
    error, what = _TOLD[quota]
    told = what.format(user=caller.user, project=caller.project)
    message = f"The quota of {standing.limit} {told} has {standing.remaining} left."
    wait = standing.resets_in_seconds
    if quota in (USER_DAY, PROJECT_MONTH):
        message = f"{message[:-1]}; the request may use {most_tokens}."
        if standing.used + most_tokens <= standing.limit:
            wait = _SOON_SECONDS
    used = (
        counts.user_day + counts.user_reserved,
        counts.project_month + counts.project_reserved,
        counts.requests + 1,
    )
    headers = {"Retry-After": str(wait), **ratelimit_headers(used, limits, periods, now)}
    return error(message, headers)


def ratelimit_headers(
    used: tuple[int, int, int], limits: Limits, periods: Periods, now: float
) -> dict[str, str]:
    """Headers as OpenAI's: of the requests, and of the token quota that has less left.

    Args: used: of the user's day, the project's month and the minute, with what is reserved.
    """
    headers: dict[str, str] = {}
    by_user, by_project, requests = used
    if limits.requests < UNLIMITED:
        left = limits.requests - requests
        headers["x-ratelimit-limit-requests"] = str(limits.requests)
        headers["x-ratelimit-remaining-requests"] = str(max(0, left))
        headers["x-ratelimit-reset-requests"] = f"{60 - int(now) % 60}s"
    limit, left, until = limits.user_day, limits.user_day - by_user, periods.until
    if limits.project_month - by_project < left:
        limit, left, until = limits.project_month, limits.project_month - by_project, periods.month_until
    if limit < UNLIMITED:
        headers["x-ratelimit-limit-tokens"] = str(limit)
        headers["x-ratelimit-remaining-tokens"] = str(max(0, left))
        headers["x-ratelimit-reset-tokens"] = f"{max(1, int(until - now))}s"
    return headers
