import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import settings as hypothesis_settings
from hypothesis.stateful import run_state_machine_as_test
from pydantic import SecretStr

from serving.access.identity import Caller
from serving.access.known import Known
from serving.errors import QuotaExceededError, QuotaUnavailableError
from serving.quotas import in_redis
from serving.quotas.in_redis import PREFIX, RedisQuotas
from serving.quotas.limits import PROJECT_MONTH, REQUESTS, USER_DAY, LimitBook
from serving.quotas.past import read_past
from serving.settings import ServingSettings
from tests.apis import running_app
from tests.billing.factories import an_event, write_segment
from tests.modelservers import wait_until
from tests.redisserver import RedisServer, needs_redis, running_redis
from tests.serving.quotas.courses import ANNA, BOB, LEASE_SECONDS, Clock, Requests

pytestmark = needs_redis
TOKENS = 120  # of an event of the factory


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with running_redis() as running:
        yield running


@pytest.fixture(autouse=True)
def empty(server: RedisServer) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.flushall()


def made(
    url: str, folder: Path, lease_seconds: float = 60.0, patience: float = 2.0, **limits: Any
) -> RedisQuotas:
    settings = ServingSettings(
        redis_url=url,
        redis_timeout_seconds=patience,
        journal_dir=folder / "journal",
        ledger_url=f"sqlite:///{folder / 'ledger.db'}",
        **{f"quota_{name}": most for name, most in limits.items()},
    )
    return RedisQuotas(settings, LimitBook(settings, Known), lease_seconds)


def refusal(quotas: RedisQuotas, caller: Caller, tokens: int) -> QuotaExceededError:
    with pytest.raises(QuotaExceededError) as caught:
        quotas.reserve(caller, "m", tokens)
    return caught.value


def standing(quotas: RedisQuotas, caller: Caller, quota: str) -> tuple[int, int]:
    found = quotas.standing(caller)[quota]
    return found.used, found.reserved


def test_workers_share_what_is_reserved_and_used(server: RedisServer, tmp_path: Path) -> None:
    one, other = (made(server.url, tmp_path, user_day_tokens=100) for _ in range(2))
    first, second = one.reserve(ANNA, "m", 60), other.reserve(ANNA, "m", 40)
    assert refusal(one, ANNA, 1).headers["Retry-After"] == "1"
    first.settle(10)
    first.settle(10)
    second.release()
    assert standing(other, ANNA, USER_DAY) == standing(one, ANNA, USER_DAY) == (10, 0)
    assert one.reserved_tokens() == 0
    other.reserve(ANNA, "m", 90)
    error = refusal(one, ANNA, 1)
    assert (error.code, error.headers["x-ratelimit-remaining-tokens"]) == ("quota_user_day", "0")
    assert other.headers(ANNA)["x-ratelimit-remaining-tokens"] == "0"


def test_every_quota_holds(server: RedisServer, tmp_path: Path) -> None:
    quotas = made(
        server.url, tmp_path, project_month_tokens=50, concurrent_requests=2, requests_per_minute=1000
    )
    quotas.reserve(ANNA, "m", 30).settle(30)
    assert refusal(quotas, BOB, 21).code == "quota_project_month"
    quotas.reserve(BOB, "m", 10)
    quotas.reserve(BOB, "m", 10)
    assert refusal(quotas, BOB, 0).code == "quota_concurrent"
    few = made(server.url, tmp_path, requests_per_minute=1)
    code = ""
    while code != "quota_requests":  # at once, unless a minute begins just now
        try:
            few.reserve(ANNA, "m", 0).release()
        except QuotaExceededError as error:
            code = error.code


def test_requests_that_are_refused_count_as_well(server: RedisServer, tmp_path: Path) -> None:
    quotas = made(server.url, tmp_path, user_day_tokens=10)
    quotas._clock = Clock()
    assert refusal(quotas, ANNA, 11).headers["x-ratelimit-remaining-requests"] == "599"
    quotas.count(ANNA)
    assert quotas.standing(ANNA)[REQUESTS].used == 2
    few = made(server.url, tmp_path, requests_per_minute=2)
    few._clock = quotas._clock
    with pytest.raises(QuotaExceededError) as one_too_many:
        few.count(ANNA)
    assert one_too_many.value.code == "quota_requests"
    assert refusal(few, ANNA, 0).code == "quota_requests"


def test_a_lease_that_nobody_ends_is_given_back(server: RedisServer, tmp_path: Path) -> None:
    quotas = made(server.url, tmp_path, lease_seconds=0.3, user_day_tokens=100)
    kept, lost = quotas.reserve(ANNA, "m", 40), quotas.reserve(ANNA, "m", 60)
    assert refusal(quotas, ANNA, 1).code == "quota_user_day"

    def is_given_back() -> bool:
        kept.renew()
        return standing(quotas, ANNA, USER_DAY) == (0, 40)

    wait_until(is_given_back)
    lost.settle(50)  # it was used all the same
    assert standing(quotas, ANNA, USER_DAY) == (50, 40)
    kept.settle(40)
    assert standing(quotas, ANNA, USER_DAY) == (90, 0)


def test_a_step_that_is_said_twice_is_done_once(server: RedisServer, tmp_path: Path) -> None:
    quotas = made(server.url, tmp_path)
    lease = quotas.reserve(ANNA, "m", 10)
    quotas.end(lease, 7)
    quotas.end(lease, 7)
    assert standing(quotas, ANNA, USER_DAY) == (7, 0)


def test_an_empty_redis_is_filled_from_ledger_and_journal_by_one(server: RedisServer, tmp_path: Path) -> None:
    write_segment(
        tmp_path / "journal", [an_event(time=datetime.now(timezone.utc), user="anna") for _ in range(3)]
    )
    used: list[tuple[int, int]] = []

    def begin() -> None:
        quotas = made(server.url, tmp_path)
        quotas.reserve(ANNA, "m", 1)
        used.append((standing(quotas, ANNA, USER_DAY)[0], standing(quotas, ANNA, PROJECT_MONTH)[0]))

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert used == [(3 * TOKENS, 3 * TOKENS)] * 8


def test_what_is_settled_while_redis_is_filled_is_not_lost(
    server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quotas = made(server.url, tmp_path)
    lease = quotas.reserve(ANNA, "m", 10)
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
    write_segment(tmp_path / "journal", [an_event(time=datetime.now(timezone.utc), user="anna")])

    def read_and_settle(*args: Any) -> Any:
        found = read_past(*args)
        lease.settle(7)
        return found

    monkeypatch.setattr(in_redis, "read_past", read_and_settle)
    quotas.reserve(ANNA, "m", 1)
    assert standing(quotas, ANNA, USER_DAY)[0] == TOKENS + 7


def test_without_the_ledger_redis_is_filled_from_the_journal_and_soon_again(
    server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_redis, "INCOMPLETE_SECONDS", 0.05)
    (tmp_path / "ledger.db").write_bytes(b"no database" * 100)
    write_segment(tmp_path / "journal", [an_event(time=datetime.now(timezone.utc), user="anna")])
    quotas = made(server.url, tmp_path)
    quotas.reserve(ANNA, "m", 1).release()
    assert (quotas.problem() or "").startswith("the ledger can't be read, so only the journal is counted")
    assert standing(quotas, ANNA, USER_DAY) == (TOKENS, 0)
    (tmp_path / "ledger.db").unlink()
    time.sleep(0.1)
    quotas.reserve(ANNA, "m", 1).release()
    assert quotas.problem() is None
    assert standing(quotas, ANNA, USER_DAY) == (TOKENS, 0)


def test_redis_away_serves_nothing_and_is_told_later_what_was_settled(tmp_path: Path) -> None:
    with running_redis() as mine:
        quotas = made(mine.url, tmp_path)
        lease = quotas.reserve(ANNA, "m", 10)
        mine.kill()
        lease.settle(7)
        with pytest.raises(QuotaUnavailableError):
            quotas.reserve(ANNA, "m", 1)
        assert (quotas.problem() or "").startswith("Redis does not answer")
        write_segment(
            tmp_path / "journal",
            [an_event(time=datetime.now(timezone.utc), user="anna", prompt_tokens=7, completion_tokens=0)],
        )
        mine.start()  # and has lost everything: it is filled from the journal
        quotas.reserve(ANNA, "m", 1).release()
        assert quotas.problem() is None
        used, reserved = standing(quotas, ANNA, USER_DAY)
        assert reserved == 0
        assert 7 <= used <= 14  # its event may have been counted, too: never too little


def test_a_request_is_refused_with_503_while_redis_is_away(tmp_path: Path) -> None:
    url = f"unix://{tmp_path / 'none.sock'}"
    with running_app(tmp_path, redis_url=url) as api:
        answer = api.analyze()
        assert (answer.status_code, answer.json["error"]["code"]) == (503, "quota_unavailable")
        assert api.events() == []


def test_a_redis_that_hangs_is_waited_for_once_and_told_later_what_was_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_redis() as mine:
        quotas = made(mine.url, tmp_path, patience=0.1)
        lease = quotas.reserve(ANNA, "m", 10)
        mine.hang()
        with pytest.raises(QuotaUnavailableError):
            quotas.reserve(ANNA, "m", 1)
        with monkeypatch.context() as patched:
            for step in ("_reserve", "_renew", "_settle", "_count"):
                patched.setattr(quotas, step, lambda **asked: pytest.fail("Redis was asked again"))
            with pytest.raises(QuotaUnavailableError):
                quotas.reserve(ANNA, "m", 1)
            lease.renew()
            lease.settle(7)
        assert (quotas.problem() or "").startswith("Redis does not answer")
        mine.go_on()
        wait_until(lambda: not quotas._hangs)
        quotas.reserve(ANNA, "m", 1).release()
        assert standing(quotas, ANNA, USER_DAY)[0] == 7
        assert quotas.problem() is None


def test_what_is_under_way_is_answered_while_redis_hangs_and_nothing_else_is(tmp_path: Path) -> None:
    with (
        running_redis() as mine,
        running_app(tmp_path, redis_url=mine.url, redis_timeout_seconds=0.1) as api,
        ThreadPoolExecutor(1) as pool,
    ):
        api.server.may_answer.clear()
        under_way = pool.submit(api.analyze)
        assert api.server.was_asked.acquire(timeout=30)
        mine.hang()
        api.server.may_answer.set()
        assert under_way.result(30).status_code == 200
        answer = api.analyze()
        assert (answer.status_code, answer.json["error"]["code"]) == (503, "quota_unavailable")
        assert len(api.events()) == 1
        mine.go_on()
        wait_until(lambda: api.analyze().status_code == 200)


def test_sixty_four_clients_of_four_workers_never_exceed_a_nearly_used_quota(
    server: RedisServer, tmp_path: Path
) -> None:
    limit = 3000
    command = [sys.executable, "-m", "tests.quotaclients", server.url, str(tmp_path), str(limit), "16"]
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("begin\n")
        worker.stdin.flush()
    total = sum(int(worker.communicate()[0]) for worker in workers)
    quotas = made(server.url, tmp_path, user_day_tokens=limit)
    assert standing(quotas, ANNA, USER_DAY) == (total, 0)
    assert limit - 11 < total <= limit
    with redis.Redis.from_url(server.url) as client:
        kept = {key.decode().removeprefix(PREFIX).split(":")[0] for key in client.scan_iter(f"{PREFIX}*")}
    assert kept == {"user", "project", "minute", "done", "built"}


class RequestsInRedis(Requests):
    """Quotas of a worker with a real Redis, whose clock can't be set: leases are made older instead."""

    url: str
    folder: Path

    def made(self, clock: Clock, limit: int) -> RedisQuotas:
        clock.now = max(clock.now, time.time())  # Redis forgets what its own clock says is long over
        settings = ServingSettings(
            redis_url=SecretStr(self.url),
            journal_dir=self.folder / "journal",
            ledger_url=f"sqlite:///{self.folder / 'ledger.db'}",
            quota_user_day_tokens=limit,
            quota_project_month_tokens=2 * limit,
            quota_requests_per_minute=10**6,
        )
        self.redis = redis.Redis.from_url(self.url)
        self.redis.flushall()
        quotas = RedisQuotas(settings, LimitBook(settings, Known), LEASE_SECONDS, clock)
        quotas.catch_up()
        return quotas

    def pass_time(self, seconds: float) -> None:
        super().pass_time(seconds)
        leases: list[Any] = self.redis.zrange(f"{PREFIX}ends", 0, -1)
        for lease in leases:
            self.redis.zincrby(f"{PREFIX}ends", -1000 * seconds, lease)

    def teardown(self) -> None:
        if hasattr(self, "redis"):
            self.quotas.close()
            self.redis.close()


def test_requests_of_any_course_are_counted_as_in_memory(server: RedisServer, tmp_path: Path) -> None:
    RequestsInRedis.url, RequestsInRedis.folder = server.url, tmp_path
    run_state_machine_as_test(
        RequestsInRedis, settings=hypothesis_settings(max_examples=20, stateful_step_count=25)
    )
