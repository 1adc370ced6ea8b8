"""What must be true of quotas whatever requests do, for counters in memory and in Redis alike."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any
from zoneinfo import ZoneInfo

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from serving.access.identity import Caller
from serving.errors import QuotaExceededError
from serving.quotas.contract import Quotas
from serving.quotas.limits import PROJECT_MONTH, USER_DAY
from tallybook.calendar import billing_day

ZONE = ZoneInfo("Asia/Shanghai")
ANNA = Caller("anna", "search", "retail", "127.0.0.1")
BOB = Caller("bob", "search", "retail", "127.0.0.1")
NOON = datetime(2026, 11, 21, 12, tzinfo=ZONE).timestamp()
DAY_SECONDS = 86_400
LEASE_SECONDS = 60.0


class Clock:
    """One that a test sets."""

    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Requests(RuleBasedStateMachine):
    """Requests of any course, beside a plain account of what must be true; for each kind of counters."""

    tick_seconds = 0.0  # between requests

    @initialize(day=st.integers(0, 400), limit=st.integers(0, 300))
    def begin(self, day: int, limit: int) -> None:
        self.clock = Clock(NOON + day * DAY_SECONDS)
        self.limit = limit
        self.quotas = self.made(self.clock, limit)
        self.under_way: list[tuple[Caller, int, float, Any]] = []
        self.used: dict[tuple[str, object], int] = {}

    def made(self, clock: Clock, limit: int) -> Quotas:
        """Empty counters by this clock: `limit` a user's day, twice that a project's month."""
        raise NotImplementedError

    def pass_time(self, seconds: float) -> None:
        """Let the clock of periods and that of leases go on."""
        self.clock.now += seconds

    def period(self, caller: Caller, quota: str) -> tuple[str, object]:
        day = billing_day(datetime.fromtimestamp(self.clock.now, timezone.utc), ZONE)
        return (caller.user, day) if quota == USER_DAY else (caller.project, day.replace(day=1))

    def left(self, caller: Caller) -> int:
        held = [(c, most) for c, most, ends, _ in self.under_way if ends > self.clock.now]
        by_user = sum(most for c, most in held if c.user == caller.user)
        user = self.limit - self.used.get(self.period(caller, USER_DAY), 0) - by_user
        project = 2 * self.limit - self.used.get(self.period(caller, PROJECT_MONTH), 0)
        return min(user, project - sum(most for _, most in held))

    @rule(caller=st.sampled_from([ANNA, BOB]), most=st.integers(0, 120))
    def ask(self, caller: Caller, most: int) -> None:
        self.pass_time(self.tick_seconds)
        room = self.left(caller)
        try:
            reservation = self.quotas.reserve(caller, "m", most)
        except QuotaExceededError:
            assert most > room
        else:
            assert most <= room
            self.under_way.append((caller, most, self.clock.now + LEASE_SECONDS, reservation))

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        caller, most, _, reservation = self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1)))
        used = data.draw(st.integers(0, most))
        reservation.settle(used)
        reservation.release()
        for quota in (USER_DAY, PROJECT_MONTH):
            key = self.period(caller, quota)
            self.used[key] = self.used.get(key, 0) + used

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, len(self.under_way) - 1))
        caller, most, ends, reservation = self.under_way[number]
        self.quotas.reserved_tokens()  # gives back what is over now
        reservation.renew()
        if ends > self.clock.now:
            self.under_way[number] = (caller, most, self.clock.now + LEASE_SECONDS, reservation)

    @rule(seconds=st.sampled_from([10.0, 30.0, 61.0, 3600.0, 86_400.0]))
    def wait(self, seconds: float) -> None:
        self.pass_time(seconds)

    @invariant()
    def what_is_told_is_true(self) -> None:
        self.quotas.reserved_tokens()
        for caller in (ANNA, BOB):
            told = self.quotas.standing(caller)
            assert told[USER_DAY].used == self.used.get(self.period(caller, USER_DAY), 0)
            assert min(told[USER_DAY].remaining, told[PROJECT_MONTH].remaining) == max(0, self.left(caller))
