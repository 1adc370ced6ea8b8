import threading
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from serving.access.identity import Caller
from serving.access.known import Known
from serving.errors import QuotaExceededError
from serving.quotas.in_memory import MemoryQuotas
from serving.quotas.limits import CONCURRENT, PROJECT_MONTH, REQUESTS, USER_DAY, Extra, LimitBook
from serving.quotas.past import Past
from serving.settings import ServingSettings
from tallybook.calendar import billing_day, day_interval
from tests.serving.quotas.courses import ANNA, BOB, LEASE_SECONDS, NOON, Clock, Requests

ZONE = ZoneInfo("Asia/Shanghai")
DAY_SECONDS = 86_400


def made(clock: Callable[[], float] | None = None, known: Known | None = None, **limits: int) -> MemoryQuotas:
    clock = clock or Clock()
    settings = ServingSettings(**{f"quota_{name}": most for name, most in limits.items()})  # type: ignore[arg-type]
    return MemoryQuotas(LimitBook(settings, lambda: known or Known()), ZONE, LEASE_SECONDS, clock, clock)


def refused(quotas: MemoryQuotas, caller: Caller, tokens: int) -> QuotaExceededError:
    with pytest.raises(QuotaExceededError) as caught:
        quotas.reserve(caller, "m", tokens)
    return caught.value


def standing(quotas: MemoryQuotas, caller: Caller, quota: str) -> tuple[int, int]:
    """Used and reserved."""
    found = quotas.standing(caller)[quota]
    return found.used, found.reserved


def test_what_is_reserved_counts_until_it_is_settled_or_given_back() -> None:
    quotas = made(user_day_tokens=100)
    first, second = quotas.reserve(ANNA, "m", 60), quotas.reserve(ANNA, "m", 40)
    assert refused(quotas, ANNA, 1).code == "quota_user_day"
    first.settle(10)
    assert standing(quotas, ANNA, USER_DAY) == (10, 40)
    second.release()
    assert standing(quotas, ANNA, USER_DAY) == (10, 0)
    quotas.reserve(ANNA, "m", 90)
    assert refused(quotas, ANNA, 1).code == "quota_user_day"


def test_a_reservation_ends_once() -> None:
    quotas = made()
    reservation = quotas.reserve(ANNA, "m", 50)
    reservation.settle(20)
    reservation.settle(20)
    reservation.release()
    assert standing(quotas, ANNA, USER_DAY) == (20, 0)
    assert quotas.reserved_tokens() == 0


def test_each_quota_has_a_code_a_wait_and_headers() -> None:
    clock = Clock(NOON + 12.5)
    quotas = made(
        clock, user_day_tokens=100, project_month_tokens=150, requests_per_minute=5, concurrent_requests=2
    )
    held = quotas.reserve(ANNA, "m", 100)
    only_reserved = refused(quotas, ANNA, 1)
    assert (only_reserved.code, only_reserved.headers["Retry-After"]) == ("quota_user_day", "1")
    held.settle(100)
    error = refused(quotas, ANNA, 1)
    assert error.status == 429
    assert (
        error.message == "The quota of 100 tokens a day of the user anna has 0 left; the request may use 1."
    )
    assert error.headers == {
        "Retry-After": str(DAY_SECONDS // 2 - 12),
        "x-ratelimit-limit-requests": "5",
        "x-ratelimit-remaining-requests": "2",
        "x-ratelimit-reset-requests": "48s",
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": f"{DAY_SECONDS // 2 - 13}s",
    }
    month_end = datetime(2026, 12, 1, tzinfo=ZONE).timestamp()
    error = refused(quotas, BOB, 51)
    assert (error.code, error.headers["Retry-After"]) == (
        "quota_project_month",
        str(int(month_end - NOON - 12)),
    )
    assert quotas.headers(BOB)["x-ratelimit-remaining-tokens"] == "50"
    quotas.reserve(BOB, "m", 1)
    quotas.reserve(BOB, "m", 1)
    assert refused(quotas, BOB, 1).code == "quota_concurrent"
    quotas.reserve(ANNA, "m", 0)
    last = quotas.reserve(ANNA, "m", 0)
    last.release()
    error = refused(quotas, ANNA, 0)
    assert (error.code, error.headers["Retry-After"]) == ("quota_requests", "48")


def test_requests_that_are_refused_count_as_well() -> None:
    quotas = made(user_day_tokens=10, requests_per_minute=3)
    assert refused(quotas, ANNA, 11).code == "quota_user_day"
    quotas.count(ANNA)
    assert refused(quotas, ANNA, 11).code == "quota_user_day"
    assert refused(quotas, ANNA, 11).code == "quota_requests"
    with pytest.raises(QuotaExceededError) as one_too_many:
        quotas.count(ANNA)
    assert one_too_many.value.code == "quota_requests"
    assert quotas.standing(ANNA)[REQUESTS].used == 5


def test_requests_are_counted_by_key_and_by_user_without_one() -> None:
    quotas = made(requests_per_minute=1)
    keyed = ANNA._replace(api_key_id="key-1")
    quotas.reserve(keyed, "m", 1)
    quotas.reserve(ANNA, "m", 1)
    assert refused(quotas, keyed._replace(user="bob"), 1).code == "quota_requests"
    assert refused(quotas, ANNA, 1).code == "quota_requests"


def test_a_minute_and_a_day_begin_anew_by_the_clock() -> None:
    midnight = datetime(2026, 11, 22, tzinfo=ZONE).timestamp()
    clock = Clock(midnight - 1)
    quotas = made(clock, user_day_tokens=100, requests_per_minute=2)
    quotas.reserve(ANNA, "m", 60).settle(60)
    under_way = quotas.reserve(ANNA, "m", 40)
    assert refused(quotas, ANNA, 0).code == "quota_requests"
    clock.now = midnight
    assert standing(quotas, ANNA, USER_DAY) == (0, 40)
    assert standing(quotas, ANNA, PROJECT_MONTH) == (60, 40)
    under_way.settle(30)  # its event is of the new day
    assert standing(quotas, ANNA, USER_DAY) == (30, 0)
    quotas.reserve(ANNA, "m", 70)


def test_a_clock_that_jumps_and_comes_back_finds_what_was_used() -> None:
    clock = Clock()
    quotas = made(clock, user_day_tokens=100)
    quotas.reserve(ANNA, "m", 100).settle(100)
    for jump in (-DAY_SECONDS, 400 * DAY_SECONDS):
        clock.now = NOON + jump
        assert standing(quotas, ANNA, USER_DAY) == (0, 0)
        clock.now = NOON
        assert refused(quotas, ANNA, 1).code == "quota_user_day"


def test_a_lease_that_nobody_ends_is_given_back_and_still_counted_when_settled_late() -> None:
    clock = Clock()
    quotas = made(clock, user_day_tokens=100, concurrent_requests=1)
    lost = quotas.reserve(ANNA, "m", 100)
    clock.now += LEASE_SECONDS - 1
    assert refused(quotas, ANNA, 1).code == "quota_concurrent"
    lost.renew()
    clock.now += LEASE_SECONDS - 1
    assert refused(quotas, ANNA, 1).code == "quota_concurrent"
    clock.now += 2
    assert quotas.reserved_tokens() == 0
    quotas.reserve(ANNA, "m", 50).settle(50)
    lost.renew()
    lost.settle(30)
    assert standing(quotas, ANNA, USER_DAY) == (80, 0)


def test_limits_of_one_and_grants_count_for_one() -> None:
    known = Known(
        limits={(USER_DAY, "anna"): 10, (REQUESTS, "bob"): 2, (CONCURRENT, "bob"): 1},
        grants={
            (USER_DAY, "anna"): (Extra(5, 2e9), Extra(7, 1.0)),
            (PROJECT_MONTH, "search"): (Extra(9, 2e9),),
        },
    )
    quotas = made(known=known, user_day_tokens=100, project_month_tokens=100)
    assert {name: found.limit for name, found in quotas.standing(ANNA).items()} == {
        USER_DAY: 15, PROJECT_MONTH: 109, REQUESTS: 600,
    }  # fmt: skip
    assert {name: found.limit for name, found in quotas.standing(BOB).items()} == {
        USER_DAY: 100, PROJECT_MONTH: 109, REQUESTS: 2, CONCURRENT: 1,
    }  # fmt: skip


def test_what_was_used_before_counts_and_nothing_is_forgotten_by_reading_it() -> None:
    quotas = made(user_day_tokens=100)
    now = datetime.fromtimestamp(NOON, timezone.utc)
    day = billing_day(now, ZONE)
    quotas.reserve(ANNA, "m", 10).settle(10)
    before = quotas.counted(now, ZONE)
    quotas.reserve(ANNA, "m", 5).settle(5)  # while the ledger is read: among what is read, or not
    quotas.absorb(Past(day, day.replace(day=1), {"anna": 40, "bob": 7}, {"search": 50}), before)
    assert standing(quotas, ANNA, USER_DAY) == (45, 0)
    assert standing(quotas, BOB, USER_DAY) == (7, 0)
    assert standing(quotas, BOB, PROJECT_MONTH) == (55, 0)
    quotas.absorb(Past(day, day.replace(day=1), {"anna": 0}, {}), quotas.counted(now, ZONE))
    assert standing(quotas, ANNA, USER_DAY) == (45, 0)


def test_sixty_four_clients_never_exceed_a_nearly_used_quota() -> None:
    quotas = made(user_day_tokens=1000, requests_per_minute=1_000_000)
    begin = threading.Barrier(64)
    used: list[int] = []

    def ask(number: int) -> None:
        begin.wait()
        for turn in range(20):
            most = 7 + (number + turn) % 5
            try:
                reservation = quotas.reserve(ANNA, "m", most)
            except QuotaExceededError:
                continue
            if turn % 4 == 0:
                reservation.release()
            else:
                used.append(most - turn % 3)
                reservation.settle(used[-1])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert standing(quotas, ANNA, USER_DAY) == (sum(used), 0)
    assert 1000 - 11 < sum(used) <= 1000


class RequestsInMemory(Requests):
    """Quotas of one worker."""

    tick_seconds = 1.01  # what is over is looked for once a second

    def made(self, clock: Clock, limit: int) -> MemoryQuotas:
        return made(clock, user_day_tokens=limit, project_month_tokens=2 * limit, requests_per_minute=10**6)


TestRequests = RequestsInMemory.TestCase
TestRequests.settings = hypothesis_settings(max_examples=60, stateful_step_count=30)


@given(
    st.floats(1_767_225_600, 1_830_000_000),  # 2026 and 2027
    st.sampled_from(["Asia/Shanghai", "Europe/Berlin"]),
)
def test_a_day_quota_is_of_the_bills_day(seconds: float, zone_name: str) -> None:
    zone = ZoneInfo(zone_name)
    now = datetime.fromtimestamp(seconds, timezone.utc)
    clock = Clock(seconds)
    settings = ServingSettings(quota_user_day_tokens=10)
    quotas = MemoryQuotas(LimitBook(settings, Known), zone, LEASE_SECONDS, clock, clock)
    quotas.reserve(ANNA, "m", 10).settle(10)
    interval = day_interval(billing_day(now, zone), zone)
    clock.now = (interval.end - timedelta(microseconds=1)).timestamp()
    assert refused(quotas, ANNA, 1).code == "quota_user_day"
    clock.now = interval.end.timestamp()
    assert standing(quotas, ANNA, USER_DAY) == (0, 0)
