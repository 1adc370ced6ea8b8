"""The drill: `TALLYBOOK_DRILL_KILLS=20 pytest tests/drills/test_kill_api.py -s` is the full one."""

import os
from datetime import datetime, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from billing.ingest import ingest
from billing.ledger import open_ledger, reading
from billing.tables import usage_events, usage_hours
from serving.access.identity import Caller
from serving.access.known import Known
from serving.quotas.in_redis import RedisQuotas
from serving.quotas.limits import LimitBook
from serving.quotas.past import read_past
from serving.settings import ServingSettings
from tests.drills.killing import Drill, kill_under_load
from tests.modelservers import wait_until
from tests.redisserver import needs_redis, running_redis

KILLS = int(os.environ.get("TALLYBOOK_DRILL_KILLS", "3"))


def test_every_request_that_a_client_saw_answered_is_in_the_ledger_once(
    tmp_path: Path, models_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drill = kill_under_load(tmp_path, models_dir, KILLS)
    check_ledger(tmp_path, drill, capsys)
    # Counted in the memory of a process that was killed again and again: nothing held, nothing forgotten.
    settings = shared_settings(tmp_path, None)
    past = read_past(settings.ledger_url, settings.journal_dir, settings.zone, datetime.now(timezone.utc))
    assert drill.reserved == 0
    assert drill.used == past.users


@needs_redis
def test_no_quota_is_leaked_by_kills_and_none_forgotten(
    tmp_path: Path, models_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same with quotas in Redis, which outlives what is killed."""
    with running_redis() as server:
        settings = {"redis_url": server.url, "deadline_seconds": "2", "quota_lease_seconds": "5"}
        drill = kill_under_load(tmp_path, models_dir, KILLS, seed=1, **settings)
        quotas = RedisQuotas(shared := shared_settings(tmp_path, server.url), LimitBook(shared, Known), 60)
        wait_until(lambda: quotas.reserved_tokens() == 0)  # no lease outlives its time
        quotas.catch_up()
        check_ledger(tmp_path, drill, capsys)
        past = read_past(shared.ledger_url, shared.journal_dir, shared.zone, datetime.now(timezone.utc))
        for user, tokens in past.users.items():
            caller = Caller(user, f"project-{user[-1]}", "default", "127.0.0.1")
            found = quotas.standing(caller)["user_day_tokens"]
            assert (found.used, found.reserved) == (tokens, 0)
        quotas.close()


def shared_settings(folder: Path, url: str | None) -> ServingSettings:
    return ServingSettings(
        redis_url=None if url is None else SecretStr(url),
        journal_dir=folder / "journal",
        ledger_url=f"sqlite:///{folder / 'ledger.db'}",
    )


def check_ledger(tmp_path: Path, drill: Drill, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}", "Asia/Shanghai")
    result = ingest(ledger, drill.journal_dir, ZoneInfo("Asia/Shanghai"))
    again = ingest(ledger, drill.journal_dir, ZoneInfo("Asia/Shanghai"))
    columns = usage_events.c
    with reading(ledger) as connection:
        query = sa.select(columns.id, columns.prompt_tokens, columns.completion_tokens)
        recorded = {row[0]: (row[1], row[2]) for row in connection.execute(query)}
        counted = connection.scalar(sa.select(sa.func.sum(usage_hours.c.requests)))
    ledger.dispose()
    with capsys.disabled():
        print(  # noqa: T201  a report
            f"\n  {KILLS} kills: {len(drill.answered)} answered, {len(recorded)} in the ledger, set aside "
            f"{result.set_aside or 'none'}, {drill.unanswered} connections broken, "
            f"refused {drill.refused or 'none'}"
        )
    assert result.duplicates == again.read == 0
    assert counted == len(recorded) == result.stored
    assert drill.answered.keys() <= recorded.keys(), "an answered request is not in the ledger"
    for request_id, usage in drill.answered.items():
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == recorded[request_id]
    # What was recorded and not seen answered broke off with its connection: one request a client and kill.
    assert len(recorded) - len(drill.answered) <= drill.unanswered
