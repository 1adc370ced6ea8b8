"""The rules against five simulated months: the planted surges are found, and hardly anything else."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy.engine import Engine

from billing.alerts.backtest import Alarm, Planted, raised, read_truth, score
from billing.day_sums import sum_days
from billing.errors import AlertError
from billing.ledger import open_ledger, reading, writing
from billing.settings import BillingSettings
from tallybook.cli import main
from tests.billing.conftest import FIVE_MONTHS, SIMULATED_LAST, TIME_ZONE
from tests.billing.days import at, bring
from tests.billing.factories import DAY, an_event

FIRST = FIVE_MONTHS.first_day + timedelta(days=28)
SETTINGS = BillingSettings(time_zone=TIME_ZONE)
PLANTED = [
    Planted(s.kind, s.name, FIVE_MONTHS.day(s.first), FIVE_MONTHS.day(s.last)) for s in FIVE_MONTHS.surges
]


def test_the_planted_surges_are_found_with_at_most_one_false_alarm_a_month(five_months: Engine) -> None:
    with reading(five_months) as connection:
        alarms = raised(connection, SETTINGS, FIRST, SIMULATED_LAST)
        scores = score(connection, alarms, PLANTED, FIRST, SIMULATED_LAST)
    assert sum(len(each.planted) for each in scores) == len(PLANTED) >= 8
    assert {each.rule: each.missed for each in scores if each.missed} == {}
    assert sum(each.false_a_month for each in scores) <= 1.0
    assert all(each.precision == 1 - len(each.false) / len(each.alarms) for each in scores)


def test_a_back_test_looks_at_no_day_that_lies_ahead(five_months: Engine) -> None:
    surge = next(p for p in PLANTED if p.kind == "user")
    with reading(five_months) as connection:
        whole = raised(connection, SETTINGS, FIRST, SIMULATED_LAST)
        until = raised(connection, SETTINGS, FIRST, surge.first)
    assert until == [a for a in whole if a.last <= surge.first]


def test_an_alarm_that_shares_usage_with_something_planted_is_not_false(sqlite_ledger: Engine) -> None:
    bring(sqlite_ledger, [an_event(), an_event(user="user-b", project="other")])
    with writing(sqlite_ledger) as connection:
        sum_days(connection, DAY, DAY)
        alarms = [
            Alarm("surge of a user", "user-a", DAY, DAY, ""),
            Alarm("surge of a project", "search", DAY, DAY, ""),  # where user-a was
            Alarm("surge of a project", "other", DAY, DAY, ""),
        ]
        planted = [Planted("user", "user-a", DAY, DAY), Planted("user", "user-c", DAY, DAY)]
        users, projects, *_ = score(connection, alarms, planted, DAY, DAY)
    assert (users.missed, users.recall, users.precision) == ([planted[1]], 0.5, 1.0)
    assert (projects.follows, projects.false) == ([alarms[1]], [alarms[2]])
    assert (projects.recall, projects.precision) == (None, 0.5)
    assert projects.false_a_month == pytest.approx(30.44)


def test_days_in_a_row_are_one_alarm(sqlite_ledger: Engine) -> None:
    usual = [an_event(time=at(DAY - timedelta(days=n)), prompt_tokens=5_000) for n in range(1, 40)]
    bring(sqlite_ledger, usual)
    for day in (DAY, DAY + timedelta(days=1)):
        bring(sqlite_ledger, [an_event(time=at(day), prompt_tokens=200_000)])
    last = DAY + timedelta(days=1)
    with writing(sqlite_ledger) as connection:
        sum_days(connection, DAY - timedelta(days=60), last)
        found = [a for a in raised(connection, SETTINGS, DAY, last) if a.rule == "surge of a user"]
    assert found == [Alarm("surge of a user", "user-a", DAY, last, "200,020 tokens, usually 5,020")]


@pytest.mark.parametrize("text", ["", "[]", '{"planted": [{}]}', '{"planted": [{"kind": "user"}]}'])
def test_what_is_no_truth_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "truth.json").write_text(text)
    with pytest.raises(AlertError) as refused:
        read_truth(tmp_path / "truth.json")
    assert refused.value.code == "truth_invalid"


def test_the_commands_tell_what_was_found_and_missed_and_acknowledge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("LEDGER_URL", f"sqlite:///{tmp_path / 'l.db'}"), ("JOURNAL_DIR", tmp_path / "j")):
        monkeypatch.setenv(f"TALLYBOOK_{name}", str(value))
    empty = CliRunner().invoke(main, ["alerts", "backtest"])
    assert (empty.exit_code, "no_history" in empty.output) == (1, True)

    ledger = open_ledger(f"sqlite:///{tmp_path / 'l.db'}", TIME_ZONE)
    usual = [an_event(time=at(DAY - timedelta(days=n)), prompt_tokens=5_000) for n in range(1, 40)]
    bring(ledger, [*usual, an_event(prompt_tokens=200_000)])
    truth = tmp_path / "truth.json"
    planted = [{"kind": "user", "name": n, "first": str(DAY), "last": str(DAY)} for n in ("user-a", "user-b")]
    truth.write_text(json.dumps({"planted": planted}))
    too_short = ["--from", str(DAY), "--to", str(DAY - timedelta(days=1))]
    short = CliRunner().invoke(main, ["alerts", "backtest", *too_short])
    assert (short.exit_code, "no_history" in short.output) == (1, True)
    told = CliRunner().invoke(main, ["alerts", "backtest", "--truth", str(truth), "--to", str(DAY)])
    assert told.exit_code == 0, told.output
    rows = {line[:18].strip(): line.split()[-8:] for line in told.output.splitlines()}
    assert rows["surge of a user"] == ["2", "1", "1", "0", "0", "1.00", "0.50", "0.00"]
    assert f"missed: {DAY} surge of a user user-b" in told.output

    checked = CliRunner().invoke(main, ["alerts", "check"])
    assert "[NEW] days with usage are over and not closed: 40" in checked.output
    acknowledged = CliRunner().invoke(main, ["alerts", "ack", "1", "--by", "ops-a", "--note", "known"])
    assert acknowledged.output.startswith("1: acknowledged by ops-a")
    assert "acknowledged by ops-a" in CliRunner().invoke(main, ["alerts", "list"]).output
    assert "1 acts added to the audit chain" in CliRunner().invoke(main, ["ingest"]).output
    refused = CliRunner().invoke(main, ["alerts", "ack", "7", "--by", "ops-a"])
    assert "episode_unknown" in refused.output
