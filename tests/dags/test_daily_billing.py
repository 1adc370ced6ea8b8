"""The DAG as Airflow reads it, and its runs over real ledgers, journals and outboxes."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from datetime import date, datetime, timedelta, timezone
from email import message_from_bytes
from email.policy import default
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from tallybook.calendar import billing_day, day_interval, today
from tallybook.processes import free_port
from tests.dags import dag_runs
from tests.dags.conftest import ZONE, AirflowProcess

DAY = date(2026, 11, 18)
COMPLETE = "complete_usage_day"
STEPS = ["ingest", "rate", "close", "report", "mail", "personal"]
DONE = dict.fromkeys(STEPS, "success") | {"personal": "skipped"}  # where nobody subscribed

Use = Callable[..., None]


def rows(settings: dict[str, str], query: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(settings["TALLYBOOK_LEDGER_URL"].removeprefix("sqlite:///")) as ledger:
        return ledger.execute(query).fetchall()


def outbox(settings: dict[str, str]) -> list[Path]:
    return sorted(Path(settings["TALLYBOOK_OUTBOX_DIR"]).glob("*.eml"))


def bill(mail: Path) -> str:
    """The CSV that is attached to a mail."""
    message = message_from_bytes(mail.read_bytes(), policy=default)
    (attached,) = (part for part in message.iter_attachments() if part.get_content_type() == "text/csv")
    return str(attached.get_content())


def test_the_steps_are_in_order(airflow: AirflowProcess) -> None:
    downstream = airflow.parsed.downstream
    assert set(downstream) == set(STEPS)
    assert COMPLETE in airflow.parsed.assets
    for number, step in enumerate(STEPS):
        later = STEPS[number + 1 :]
        assert set(later[:1]) <= downstream[step] <= set(later)


def test_a_day_is_billed_after_its_midnight_in_the_billing_time_zone(airflow: AirflowProcess) -> None:
    parsed = airflow.parsed
    assert (parsed.schedule, parsed.time_zone) == ("15 0 * * *", ZONE.key)
    assert (parsed.catchup, parsed.max_active_runs) == (False, 4)


@pytest.mark.parametrize("zone", ["Asia/Shanghai", "America/Santiago", "Australia/Lord_Howe"])
def test_every_billing_day_gets_one_run_after_its_end(
    airflow: AirflowProcess, settings: dict[str, str], zone: str
) -> None:
    # Santiago skips the hour after midnight in September, Lord Howe shifts by half an hour.
    first, last = datetime(2026, 1, 1, 12, tzinfo=timezone.utc), datetime(2027, 1, 1, 12, tzinfo=timezone.utc)
    runs = airflow.call(dag_runs.intervals, settings | {"TALLYBOOK_TIME_ZONE": zone}, first, last)
    days = [billing_day(start, ZoneInfo(zone)) for start, _ in runs]
    assert days == [days[0] + timedelta(number) for number in range(365)]
    for day, (_, end) in zip(days, runs, strict=True):
        assert timedelta(0) <= end - day_interval(day, ZoneInfo(zone)).end < timedelta(hours=2)


def test_reading_the_dag_loads_neither_ledger_nor_charts(airflow: AirflowProcess) -> None:
    assert not airflow.parsed.loaded & dag_runs.SLOW


def test_a_second_run_of_a_day_changes_nothing(
    airflow: AirflowProcess, settings: dict[str, str], use: Use
) -> None:
    use(DAY, "user-a", requests=3)
    use(DAY, "user-b")
    lines = "SELECT * FROM bill_lines ORDER BY user_id, direction"

    first = airflow.run(settings, {"day": str(DAY), "user": None})
    billed, mails = rows(settings, lines), outbox(settings)
    second = airflow.run(settings, {"day": str(DAY), "user": None})

    assert first.tasks == second.tasks == DONE
    assert len(billed) == 4
    assert rows(settings, lines) == billed
    assert rows(settings, "SELECT day, state FROM bill_days") == [(str(DAY), "closed")]
    assert len(mails) == 1
    assert outbox(settings) == mails
    assert f"{DAY}: closed, 4 events, 480 tokens on lines" in first.log


def test_without_a_named_day_the_one_of_the_data_interval_is_billed(
    airflow: AirflowProcess, settings: dict[str, str]
) -> None:
    # The interval starts at 00:15 of DAY in Shanghai, which is still the day before in UTC.
    end = datetime(2026, 11, 18, 16, 15, tzinfo=timezone.utc)
    assert airflow.run(settings, logical_date=end).state == "success"
    assert rows(settings, "SELECT day, state FROM bill_days") == [(str(DAY), "closed")]


@pytest.mark.parametrize(
    ("days_ahead", "code", "step"),
    [(0, "day_not_over", "close"), (1, "day_in_future", "rate")],
    ids=["today", "tomorrow"],
)
def test_a_day_that_is_not_over_fails_at_once(
    airflow: AirflowProcess, settings: dict[str, str], days_ahead: int, code: str, step: str
) -> None:
    day = today(ZONE) + timedelta(days=days_ahead)
    outcome = airflow.run(settings, {"day": str(day)}, retries=3)
    failed = STEPS.index(step)
    ended = ["success"] * failed + ["failed"] + ["upstream_failed"] * (len(STEPS) - failed - 1)
    assert outcome.tasks == dict(zip(STEPS, ended, strict=True))
    assert outcome.tries[step] == 1
    assert f"{code}: {day}" in outcome.log
    assert rows(settings, "SELECT day FROM bill_days WHERE state = 'closed'") == []


def test_today_can_be_closed_early_on_purpose(airflow: AirflowProcess, settings: dict[str, str]) -> None:
    outcome = airflow.run(settings, {"day": str(today(ZONE)), "early": True})
    assert outcome.state == "success"
    assert rows(settings, "SELECT state, early FROM bill_days") == [("closed", 1)]


def test_a_run_without_day_and_interval_says_what_is_missing(
    airflow: AirflowProcess, settings: dict[str, str]
) -> None:
    outcome = airflow.run(settings, retries=3)
    assert (outcome.tasks["ingest"], outcome.tries["ingest"]) == ("failed", 1)
    assert "day_missing: name a day" in outcome.log


@pytest.mark.parametrize(
    "conf",
    [
        {"day": "tomorrow"},
        {"day": "2026-02-30"},
        {"day": "20261118"},
        {"day": 20261118},
        {"user": "user-a\n"},
        {"user": "a b"},
        {"early": "no"},
    ],
)
def test_what_is_no_day_or_user_is_refused_before_anything_runs(
    airflow: AirflowProcess, settings: dict[str, str], conf: dict[str, object]
) -> None:
    with pytest.raises(Exception, match=f"Invalid input for param {next(iter(conf))}"):
        airflow.run(settings, conf)


def test_one_users_part_is_mailed_beside_the_whole_bill(
    airflow: AirflowProcess, settings: dict[str, str], use: Use
) -> None:
    use(DAY, "user-a")
    use(DAY, "user-b")
    assert airflow.run(settings, {"day": str(DAY), "user": None}).state == "success"
    assert airflow.run(settings, {"day": str(DAY), "user": "user-b"}).state == "success"
    users = [{user for user in ("user-a", "user-b") if user in bill(mail)} for mail in outbox(settings)]
    assert sorted(users, key=len) == [{"user-b"}, {"user-a", "user-b"}]


def test_a_dry_run_tells_the_bill_and_the_mail_and_stores_nothing(
    airflow: AirflowProcess, settings: dict[str, str], use: Use
) -> None:
    use(DAY, "user-a", requests=3)
    assert airflow.run(settings, {"day": str(DAY), "user": "user-a"}).state == "success"
    use(DAY, "user-b")
    use(DAY + timedelta(days=1), "user-b")
    before = rows(settings, "SELECT * FROM bill_lines"), outbox(settings)
    rehearsed = airflow.run(settings, {"day": str(DAY + timedelta(days=1)), "dry_run": True})
    assert rehearsed.tasks == dict.fromkeys(STEPS, "skipped")
    assert f"{DAY + timedelta(days=1)} would be closed: 0 lines, 0 tokens" in rehearsed.log
    assert (rows(settings, "SELECT * FROM bill_lines"), outbox(settings)) == before
    assert rows(settings, "SELECT day FROM bill_days") == [(str(DAY),)]


def test_subscribers_get_mails_of_their_own(
    airflow: AirflowProcess, settings: dict[str, str], use: Use, tmp_path: Path
) -> None:
    use(DAY, "user-a")
    use(DAY, "user-b")
    (tmp_path / "subscriptions.toml").write_text(
        '[[subscriptions]]\nuser = "user-b"\nto = ["b@example.com"]\n'
    )
    file = {"TALLYBOOK_SUBSCRIPTIONS_FILE": str(tmp_path / "subscriptions.toml")}
    first = airflow.run(settings | file, {"day": str(DAY)})
    airflow.run(settings | file, {"day": str(DAY)})
    assert first.tasks == dict.fromkeys(STEPS, "success")
    to = [message_from_bytes(mail.read_bytes())["To"] for mail in outbox(settings)]
    assert sorted(to) == ["b@example.com", "finance@example.com"]


def test_a_mail_server_that_is_away_is_tried_again_and_the_bill_stays_closed(
    airflow: AirflowProcess, settings: dict[str, str], use: Use
) -> None:
    use(DAY, "user-a")
    away = settings | {"TALLYBOOK_SMTP_URL": f"smtp://127.0.0.1:{free_port()}"}
    outcome = airflow.run(away, {"day": str(DAY)}, retries=1)
    assert (outcome.tasks["mail"], outcome.tries["mail"]) == ("failed", 2)
    assert "mail_not_delivered" in outcome.log
    assert rows(settings, "SELECT state FROM bill_days") == [("closed",)]

    assert airflow.run(settings, {"day": str(DAY)}).state == "success"
    failure, bill_mail = sorted(outbox(settings), reverse=True)
    assert "failure-daily_billing-" in failure.name
    assert b"mail_not_delivered" in failure.read_bytes()
    assert "user-a" in bill(bill_mail)
