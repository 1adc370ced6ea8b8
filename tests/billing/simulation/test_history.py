"""A simulated history: the same each time, told as simulated, brought and closed like real usage."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from sqlalchemy.engine import Engine

from billing import audit
from billing.errors import SimulationError
from billing.events import EventReader
from billing.exports.beancount import write_beancount
from billing.exports.closed_bills import month_of
from billing.exports.focus_files import export_focus, write_csv
from billing.ledger import open_ledger, reading
from billing.simulation.days import SOURCE, day_lines
from billing.simulation.history import simulate, write_settings
from billing.simulation.mark import TOLD, is_simulated
from billing.simulation.world import QUIET_DAYS, make_world
from billing.statements.statement import statement
from billing.statements.text import as_csv, as_text
from billing.tables import bill_days, bill_lines, usage_events
from tallybook.calendar import ONE_DAY, billing_day, today
from tallybook.cli import main
from tallybook.usage import UsageEvent
from tests.billing.conftest import TIME_ZONE
from tests.billing.days import bring
from tests.billing.factories import ZONE, an_event

LAST = date(2026, 11, 20)
WEEK = make_world(LAST, days=7, users=12, requests=3.0, seed=1)
HALF_A_YEAR = make_world(LAST, days=180, users=40, requests=6.0, seed=1)


def events(line_source: Callable[[], list[bytes]]) -> list[UsageEvent]:
    return [UsageEvent.from_record(json.loads(line)) for line in line_source()]


def test_the_same_seed_makes_the_same_history_and_another_seed_another() -> None:
    def history(seed: int) -> list[bytes]:
        world = make_world(LAST, days=7, users=12, requests=3.0, seed=seed)
        return [line for number in range(7) for line in day_lines(world, number, ZONE)]

    assert history(1) == history(1)
    assert not set(history(1)) & set(history(2))


@pytest.mark.parametrize(
    ("zone", "last"),
    [("Asia/Shanghai", LAST), ("Europe/Berlin", date(2026, 10, 25)), ("Europe/Berlin", date(2026, 3, 29))],
    ids=["24 hours", "25 hours", "23 hours"],
)
def test_every_line_is_an_event_of_its_day_that_says_that_it_is_simulated(zone: str, last: date) -> None:
    world = make_world(last, days=2, users=30, requests=4.0, seed=3)
    told = events(lambda: list(day_lines(world, 1, ZoneInfo(zone))))
    assert len(told) > 100
    assert {event.source for event in told} == {SOURCE}
    assert {billing_day(event.time, ZoneInfo(zone)) for event in told} == {last}
    assert [event.time for event in told] == sorted(event.time for event in told)
    assert len({event.id for event in told}) == len(told)


def test_the_fast_reader_takes_every_line_as_it_is_written() -> None:
    reader = EventReader(ZONE, for_copy=True)
    for line in day_lines(WEEK, 3, ZONE):
        said = UsageEvent.from_record(json.loads(line))
        assert reader.read(line).tokens == (said.prompt_tokens, said.cached_tokens, said.completion_tokens)


def test_a_working_day_has_more_requests_than_a_sunday() -> None:
    requests = {HALF_A_YEAR.day(n): len(list(day_lines(HALF_A_YEAR, n, ZONE))) for n in range(14)}
    by_weekday = Counter({day.weekday(): 0 for day in requests})
    for day, count in requests.items():
        by_weekday[day.weekday()] += count
    assert by_weekday[6] < 0.85 * min(by_weekday[weekday] for weekday in range(5))


def test_a_planted_surge_is_several_times_what_its_user_did_before() -> None:
    surge = next(s for s in HALF_A_YEAR.surges if s.kind == "user" and s.first == s.last)

    def tokens(number: int) -> int:
        told = events(lambda: list(day_lines(HALF_A_YEAR, number, ZONE)))
        return sum(event.total_tokens for event in told if event.user == surge.name)

    assert tokens(surge.first) > 4 * max(tokens(surge.first - 7 * weeks) for weeks in range(1, 5))


def test_nothing_is_planted_before_a_rule_can_know_better() -> None:
    assert all(surge.first >= QUIET_DAYS for surge in HALF_A_YEAR.surges)
    assert {surge.kind for surge in HALF_A_YEAR.surges} == {"user", "project", "model", "address"}
    assert WEEK.surges == ()


def test_a_history_is_brought_and_closed_once_and_the_audit_proves_it(ledger: Engine, tmp_path: Path) -> None:
    first = simulate(ledger, WEEK, tmp_path, ZONE, close=True)
    again = simulate(ledger, WEEK, tmp_path, ZONE, close=True)
    assert first.stored > 0
    assert (again.stored, again.closed) == (0, 0)
    assert first.closed == 7
    with reading(ledger) as connection:
        audit.verify(connection)
        assert set(connection.scalars(sa.select(usage_events.c.source))) == {SOURCE}
        assert set(connection.scalars(sa.select(bill_days.c.state))) == {"closed"}
        unrated = sa.select(bill_lines.c.model).where(bill_lines.c.price_id == "")
        assert set(connection.scalars(unrated)) == {"trial-model"}
        assert is_simulated(connection)
    assert not list(tmp_path.rglob("*.jsonl"))


def test_a_ledger_with_real_events_is_refused_unless_forced(sqlite_ledger: Engine, tmp_path: Path) -> None:
    bring(sqlite_ledger, [an_event()])
    with pytest.raises(SimulationError) as refused:
        simulate(sqlite_ledger, WEEK, tmp_path, ZONE)
    assert refused.value.code == "ledger_is_real"
    with reading(sqlite_ledger) as connection:
        assert not is_simulated(connection)
        assert connection.scalar(sa.select(sa.func.count()).select_from(usage_events)) == 1
    assert simulate(sqlite_ledger, WEEK, tmp_path, ZONE, force=True).stored > 0


def test_another_history_in_the_same_ledger_is_refused(sqlite_ledger: Engine, tmp_path: Path) -> None:
    simulate(sqlite_ledger, WEEK, tmp_path, ZONE)
    other = make_world(LAST, days=7, users=12, requests=3.0, seed=2)
    with pytest.raises(SimulationError) as refused:
        simulate(sqlite_ledger, other, tmp_path, ZONE)
    assert refused.value.code == "simulated_otherwise"


def test_whoever_opens_a_simulated_ledger_is_told(
    sqlite_ledger: Engine, sqlite_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    open_ledger(sqlite_url, TIME_ZONE).dispose()
    assert TOLD not in caplog.text
    simulate(sqlite_ledger, WEEK, tmp_path, ZONE)
    open_ledger(sqlite_url, TIME_ZONE).dispose()
    assert TOLD in caplog.text


def test_the_command_makes_a_ledger_that_every_command_can_be_tried_on(tmp_path: Path) -> None:
    options = ["--days", "5", "--users", "6", "--requests", "2", "--folder", str(tmp_path), "--close"]
    made = CliRunner().invoke(main, ["simulate", *options])
    assert made.exit_code == 0, made.output
    assert TOLD in made.output
    assert "5 days closed" in made.output
    command = [sys.executable, "-m", "tallybook.cli", "--config", str(tmp_path / "tallybook.toml"), "budgets"]
    tried = subprocess.run(command, check=True, capture_output=True, text=True)
    assert TOLD in tried.stderr
    assert "department operations" in tried.stdout


def test_what_is_exported_from_a_simulated_ledger_says_so(sqlite_ledger: Engine, tmp_path: Path) -> None:
    simulate(sqlite_ledger, WEEK, tmp_path, ZONE, close=True)
    month = month_of(LAST, ZONE)
    focus, beancount = io.BytesIO(), io.BytesIO()
    with reading(sqlite_ledger) as connection:
        told = statement(connection, LAST, ZONE)
        export_focus(connection, month, ZONE, "a provider", write_csv, focus)
        write_beancount(connection, month, ZONE, beancount)
    rows = list(csv.DictReader(io.StringIO(focus.getvalue().decode())))
    assert {json.loads(row["Tags"])["tallybook:simulated"] for row in rows} == {"true"}
    assert f"; {TOLD}" in beancount.getvalue().decode().splitlines()
    assert TOLD in as_text(told)
    states = {row["state"] for row in csv.DictReader(io.StringIO(as_csv(told).decode("utf-8-sig")))}
    assert states == {"simulated"}


def test_a_day_that_is_not_over_is_not_simulated(tmp_path: Path) -> None:
    tomorrow = today(ZONE) + ONE_DAY
    for day in (tomorrow, tomorrow - timedelta(days=1)):
        told = CliRunner().invoke(main, ["simulate", "--until", str(day), "--folder", str(tmp_path)])
        assert told.exit_code == 2
        assert f"{day} is not over" in told.output
    assert list(tmp_path.iterdir()) == []


def test_settings_name_the_folder_wherever_they_are_read_from(tmp_path: Path) -> None:
    file = write_settings(tmp_path / 'with "quotes"', "sqlite:///x.db", TIME_ZONE)
    assert str(tmp_path) in file.read_text("utf-8")
