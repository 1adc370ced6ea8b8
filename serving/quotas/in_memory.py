"""Quotas of one worker, counted in its memory."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import date, datetime, tzinfo

from serving.access.identity import Caller
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
from serving.quotas.limits import LimitBook, Limits, requester
from serving.quotas.past import Past
from tallybook.calendar import billing_day, month_start

_USER_DAY, _PROJECT_MONTH, _REQUESTS, _CONCURRENT = range(len(Limits._fields))
_PERIODS_KEPT = 3  # a clock that jumps and comes back finds what was used
_SWEEP_SECONDS = 1.0


class MemoryQuotas:
    """Counts in this process; nothing here waits for anything. Safe for many threads."""

    def __init__(
        self,
        limits: LimitBook,
        zone: tzinfo,
        lease_seconds: float,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._zone = zone
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._periods = Periods.at(clock(), zone)
        self._days: OrderedDict[date, dict[str, int]] = OrderedDict()
        self._months: OrderedDict[date, dict[str, int]] = OrderedDict()
        self._by_user = _table(self._days, self._periods.day)
        self._by_project = _table(self._months, self._periods.month)
        self._minute = 0
        self._requests: dict[str, int] = {}
        # What is held does not end with its period: a request that is under way at midnight counts tomorrow.
        self._held_by_user: dict[str, int] = {}
        self._held_by_project: dict[str, int] = {}
        self._open: dict[str, int] = {}
        self._leases: OrderedDict[_Lease, float] = OrderedDict()  # the one that ends first comes first
        self._sweep_at = 0.0

    def reserve(self, caller: Caller, model: str, most_tokens: int) -> _Lease:
        """See `contract.Quotas`. On the path of every request: no object is made that is not needed."""
        limits = self._limits.of(caller)
        user, project = caller.user, caller.project
        who = caller.api_key_id or user
        with self._lock:
            now = self._now()
            lease_from = self._monotonic()
            if lease_from >= self._sweep_at:
                self._sweep(lease_from)
            requests = self._requests.get(who, 0)
            self._requests[who] = requests + 1
            concurrent = self._open.get(who, 0)
            by_user = self._held_by_user.get(user, 0) + most_tokens
            by_project = self._held_by_project.get(project, 0) + most_tokens
            if (
                requests >= limits[_REQUESTS]
                or concurrent >= limits[_CONCURRENT]
                or self._by_user.get(user, 0) + by_user > limits[_USER_DAY]
                or self._by_project.get(project, 0) + by_project > limits[_PROJECT_MONTH]
            ):
                counts = self._counts(user, project, who)._replace(requests=requests)
                raise refusal(caller, counts, limits, self._periods, now, most_tokens)
            self._open[who] = concurrent + 1
            self._held_by_user[user] = by_user
            self._held_by_project[project] = by_project
            lease = _Lease(self, user, project, who, most_tokens)
            self._leases[lease] = lease_from + self._lease_seconds
        return lease

    def count(self, caller: Caller) -> None:
        """See `serving.quotas.contract.Quotas`."""
        limits = self._limits.of(caller)
        who = requester(caller)
        with self._lock:
            now = self._now()
            counts = self._counts(caller.user, caller.project, who)
            self._requests[who] = counts.requests + 1
            if counts.requests >= limits.requests:
                raise refusal(caller, counts, limits, self._periods, now, 0)

    def headers(self, caller: Caller) -> Mapping[str, str]:
        """See `serving.quotas.contract.Quotas`. What it looks at may change meanwhile, which does no harm."""
        limits = self._limits.of(caller)
        user, project = caller.user, caller.project
        counts = (
            self._by_user.get(user, 0) + self._held_by_user.get(user, 0),
            self._by_project.get(project, 0) + self._held_by_project.get(project, 0),
            self._requests.get(caller.api_key_id or user, 0),
        )
        return ratelimit_headers(counts, limits, self._periods, self._clock())

    def standing(self, caller: Caller) -> Mapping[str, Standing]:
        """See `serving.quotas.contract.Quotas`."""
        limits = self._limits.of(caller)
        with self._lock:
            now = self._now()
            counts = self._counts(caller.user, caller.project, requester(caller))
            resets_in = self._periods.resets_in(now)
        return standings(counts, limits, resets_in)

    def reserved_tokens(self) -> int:
        """Tokens held by all requests under way."""
        with self._lock:
            self._sweep(self._monotonic())
            return sum(self._held_by_project.values())

    def counted(self, moment: datetime, zone: tzinfo) -> tuple[dict[str, int], dict[str, int]]:
        """What is counted of each user and project in the moment's day and month; for `absorb`."""
        day = billing_day(moment, zone)
        with self._lock:
            return dict(_table(self._days, day)), dict(_table(self._months, month_start(day)))

    def absorb(self, past: Past, before: tuple[Mapping[str, int], Mapping[str, int]]) -> None:
        """Count what was used before, given what was counted before it was read; never too little."""
        with self._lock:
            tables = (_table(self._days, past.day), _table(self._months, past.month))
            for table, used, known in zip(tables, (past.users, past.projects), before, strict=True):
                for name, tokens in used.items():
                    counted = table.get(name, 0)
                    # What was counted in the meantime may be among what was read, or not.
                    table[name] = max(counted, tokens + counted - known.get(name, 0))

    def problem(self) -> str | None:
        """None: memory is always there."""
        return None

    def close(self) -> None:
        """Nothing to let go of."""

    def end(self, lease: _Lease, used_tokens: int) -> None:
        """Give back what a lease holds, unless that is done, and count what was used."""
        with self._lock:
            self._now()
            self._give_back(lease)
            if used_tokens:
                self._by_user[lease.user] = self._by_user.get(lease.user, 0) + used_tokens
                self._by_project[lease.project] = self._by_project.get(lease.project, 0) + used_tokens

    def renew(self, lease: _Lease) -> None:
        """Let a lease that is not over begin anew."""
        with self._lock:
            if self._leases.pop(lease, None) is not None:
                self._leases[lease] = self._monotonic() + self._lease_seconds

    def _now(self) -> float:
        """The time, with the tables turned to its periods."""
        now = self._clock()
        if not self._periods.hold_at(now):
            self._periods = Periods.at(now, self._zone)
            self._by_user = _table(self._days, self._periods.day)
            self._by_project = _table(self._months, self._periods.month)
        minute = int(now // MINUTE_SECONDS)
        if minute != self._minute:
            self._minute = minute
            self._requests = {}
        return now

    def _counts(self, user: str, project: str, who: str) -> Counts:
        return Counts(
            self._by_user.get(user, 0),
            self._held_by_user.get(user, 0),
            self._by_project.get(project, 0),
            self._held_by_project.get(project, 0),
            self._requests.get(who, 0),
            self._open.get(who, 0),
        )

    def _sweep(self, now: float) -> None:
        """Give back what leases hold whose time is over."""
        self._sweep_at = now + _SWEEP_SECONDS
        while self._leases:
            lease, ends_at = next(iter(self._leases.items()))
            if ends_at > now:
                break
            self._give_back(lease)

    def _give_back(self, lease: _Lease) -> None:
        if self._leases.pop(lease, None) is None:
            return
        _take(self._held_by_user, lease.user, lease.most_tokens)
        _take(self._held_by_project, lease.project, lease.most_tokens)
        _take(self._open, lease.requester, 1)


class _Lease(Lease):
    """What one request holds."""

    __slots__ = ("most_tokens", "project", "requester", "user")

    def __init__(
        self, quotas: MemoryQuotas, user: str, project: str, requester: str, most_tokens: int
    ) -> None:
        self._quotas = quotas
        self._ended = False
        self.user = user
        self.project = project
        self.requester = requester
        self.most_tokens = most_tokens


def _table(tables: OrderedDict[date, dict[str, int]], period: date) -> dict[str, int]:
    """The table of a period, made if need be; of those looked at before the last ones are kept."""
    table = tables.setdefault(period, {})
    tables.move_to_end(period)
    while len(tables) > _PERIODS_KEPT:
        tables.popitem(last=False)
    return table


def _take(table: dict[str, int], name: str, amount: int) -> None:
    left = table.get(name, 0) - amount
    if left > 0:
        table[name] = left
    else:
        table.pop(name, None)
