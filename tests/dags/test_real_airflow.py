"""A real Airflow, started as `tallybook airflow up` starts it, runs each of our DAGs by every way there is.

One Airflow for all of it: by schedule and by asset, on the command line, by REST, as a back-fill.
`train_and_release` has its own tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import date, datetime, timedelta
from datetime import time as clock
from email import message_from_bytes
from email.message import Message
from email.policy import default
from pathlib import Path

import pytest

from billing.bills import close_day
from billing.ingest import ingest
from billing.ledger import open_ledger, writing
from billing.prices.book import sync_prices
from billing.prices.file import read_tariff
from tallybook.airflow import AirflowError, EmbeddedAirflow
from tallybook.calendar import today
from tests.billing.robots import Robots, running_robots
from tests.dags.conftest import PRICES, ZONE, an_event

NOW, TODAY = datetime.now(ZONE), today(ZONE)
YESTERDAY = TODAY - timedelta(days=1)
# The month whose statement is due first: on the 2nd, at 06:00, of the month after it.
MONTH = ((NOW - timedelta(days=1, hours=6)).date().replace(day=1) - timedelta(days=1)).replace(day=1)
FILLED, BY_COMMAND, NEVER = MONTH.replace(day=10), MONTH.replace(day=18), date(2199, 1, 1)
UNRATED = "nobody-priced-me"
HISTORY = [MONTH + timedelta(days=n) for n in range((YESTERDAY - MONTH).days)]
_MONDAY = (NOW - timedelta(hours=6, minutes=30)).date()  # on or after one at 06:30
SUNDAY = _MONDAY - timedelta(days=_MONDAY.weekday() + 1)
DAGS = ("daily_billing", "hourly_alerts", "keep_up", "monthly_statements", "usage_forecast")
CONF = {
    "daily_billing": {"day": str(BY_COMMAND)},
    "monthly_statements": {"month": f"{MONTH:%Y-%m}"},
    "usage_forecast": {"day": str(YESTERDAY - timedelta(days=1))},
}


class Place:
    """A running Airflow, the folder with the ledger and the outbox that its DAGs work on, and chat robots."""

    def __init__(self, airflow: EmbeddedAirflow, folder: Path, robots: Robots) -> None:
        self.airflow, self.folder, self.robots = airflow, folder, robots

    def mails(self, to: str) -> list[Message]:
        """What is in the outbox for somebody."""
        files = (self.folder / "outbox").glob("*.eml")
        mails = (message_from_bytes(file.read_bytes(), policy=default) for file in files)
        return [mail for mail in mails if mail["To"] == to]

    def billed(self, day: date) -> int:
        """How many mails with the bill of a day finance got."""
        return sum(str(day) in mail["Subject"] for mail in self.mails("finance@example.com"))

    def wait_for(self, dag_id: str, run_type: str) -> None:
        """Wait for a run that Airflow starts by itself, and for its success."""
        deadline = time.monotonic() + 300
        while True:
            for run, how, _ in self.airflow.runs(dag_id):
                if how == run_type:
                    return self.succeeded(dag_id, run)
            assert time.monotonic() < deadline, f"no {run_type} run of {dag_id}: {self.airflow.runs(dag_id)}"
            time.sleep(1)

    def succeeded(self, dag_id: str, run: str) -> None:
        """Wait for the success of a run."""
        state = self.airflow.wait(dag_id, run)
        assert state == "success", (dag_id, run, self.airflow.errors(dag_id, run))

    def tell_complete(self, day: date) -> None:
        """Tell Airflow that a day is complete, as `keep_up` does if the day is not closed when it looks."""
        [asset] = self.airflow.call("GET", "/api/v2/assets")["assets"]
        event = {"asset_id": asset["id"], "extra": {"day": str(day)}}
        self.airflow.call("POST", "/api/v2/assets/events", event)

    def command(self, *arguments: str) -> None:
        """Give Airflow one of its own commands, as an operator would in a shell."""
        command = [sys.executable, "-m", "tallybook.cli", "airflow", "do", "--folder", str(self.airflow.home)]
        told = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
        assert told.returncode == 0, told.stderr

    def commands(self, commands: list[list[str]]) -> None:
        """Give Airflow several of its own commands in one process: each start of it takes five seconds."""
        code = f"import sys\nfrom airflow.__main__ import main\nfor sys.argv in {commands!r}: main()"
        variables = {**os.environ, **self.airflow.environment}
        subprocess.run([sys.executable, "-c", code], env=variables, stdout=subprocess.DEVNULL, check=True)


def processes_of(home: Path) -> list[str]:
    """Command lines of the processes that write to the logs in this folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "fd" / "1").readlink().is_relative_to(home):
                found.append((process / "cmdline").read_text())
        except OSError:  # not ours, or gone by now
            continue
    return found


def history(folder: Path) -> dict[str, str]:
    """A ledger with closed days, and a journal with yesterday and today; the settings that name them."""
    variables = {
        "TALLYBOOK_TIME_ZONE": ZONE.key,
        "TALLYBOOK_JOURNAL_DIR": str(folder / "journal"),
        "TALLYBOOK_LEDGER_URL": f"sqlite:///{folder / 'ledger.db'}",
        "TALLYBOOK_PRICES_FILE": str(PRICES),
        "TALLYBOOK_REPORTS_DIR": str(folder / "reports"),
        "TALLYBOOK_OUTBOX_DIR": str(folder / "outbox"),
        "TALLYBOOK_SUBSCRIPTIONS_FILE": str(folder / "subscriptions.toml"),
        "TALLYBOOK_SMTP_URL": "",
    }
    subscribed = '[[subscriptions]]\nuser = "user-1"\nto = ["one@example.com"]\nlanguage = "zh"\n'
    (folder / "subscriptions.toml").write_text(subscribed)
    (folder / "journal").mkdir()
    for day in HISTORY:
        _use(folder, day)
    ledger = open_ledger(variables["TALLYBOOK_LEDGER_URL"], ZONE.key)
    ingest(ledger, folder / "journal", ZONE)
    with writing(ledger) as connection:
        tariff = sync_prices(connection, read_tariff(PRICES))
        for day in HISTORY:
            close_day(connection, day, tariff, ZONE)
    ledger.dispose()
    _use(folder, YESTERDAY, UNRATED)
    _use(folder, TODAY)
    return variables


def _use(folder: Path, day: date, *models: str) -> None:
    """Write two users' requests to the journal, and one for each of these models."""
    moment = datetime.combine(day, clock(0, 0, 1), tzinfo=ZONE)
    events = [an_event(moment, f"user-{n}", 100) for n in range(2)]
    events += [replace(an_event(moment, "user-0", 100), model=model) for model in models]
    lines = (json.dumps(event.to_record()) + "\n" for event in events)
    (folder / "journal" / f"{day}.jsonl").write_text("".join(lines))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    if sys.platform != "linux":
        pytest.skip("looks for processes in /proc")
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch, running_robots() as robots:
        channels = {"TALLYBOOK_ALERT_CHANNELS": f'{{"ops": "wecom+{robots.url}/wecom"}}'}
        for name, value in (history(folder) | channels).items():
            patch.setenv(name, value)
        with EmbeddedAirflow(folder / "airflow", scheduled=True) as airflow:
            for dag in DAGS:
                airflow.wait_until_ready(dag, 180)
            yield Place(airflow, folder, robots)
            assert len(processes_of(airflow.home)) >= 3
        assert processes_of(airflow.home) == []


def test_each_dag_runs_by_its_schedule_and_billing_as_soon_as_a_day_is_complete(place: Place) -> None:
    for dag in DAGS:
        place.wait_for(dag, "scheduled")
    place.tell_complete(YESTERDAY)
    place.wait_for("daily_billing", "asset_triggered")
    assert place.billed(YESTERDAY) == 1  # by two runs
    assert len(place.mails("one@example.com")) == 1
    assert (place.folder / "reports" / f"{MONTH:%Y-%m}" / "statement-retail.pdf").exists()
    assert (place.folder / "reports" / "forecast" / str(SUNDAY) / "forecast.csv").exists()


def test_each_dag_runs_by_command(place: Place) -> None:
    typed = [
        ["dags", "trigger", dag, "--run-id", "typed", "--conf", json.dumps(CONF.get(dag, {}))] for dag in DAGS
    ]
    place.command(*typed[0])
    place.commands([["airflow", *command] for command in typed[1:]])
    for dag in DAGS:
        place.succeeded(dag, "typed")
    assert place.billed(BY_COMMAND) == 1
    last = CONF["usage_forecast"]["day"]
    assert (place.folder / "reports" / "forecast" / last / "forecast.csv").exists()


def test_each_dag_runs_by_rest(place: Place) -> None:
    conf = CONF | {"daily_billing": {"day": str(TODAY), "early": True}}
    runs = [(dag, place.airflow.trigger(dag, conf.get(dag, {}))) for dag in DAGS]
    for dag, run in runs:
        place.succeeded(dag, run)
    assert place.billed(TODAY) == 1


def test_what_three_runs_found_and_stated_was_told_once(place: Place) -> None:
    told = [text for text in place.robots.texts() if UNRATED in text]
    assert len(told) == 1, place.robots.texts()
    stated = [
        mail["Subject"] for mail in place.mails("finance@example.com") if "statement" in mail["Subject"]
    ]
    assert len(stated) == 1, stated
    assert f"statement of {MONTH:%Y-%m}" in stated[0]


def test_a_range_of_days_is_filled_in(place: Place) -> None:
    days = ["--from-date", str(FILLED), "--to-date", str(FILLED + timedelta(days=1))]
    place.command("backfill", "create", "--dag-id", "daily_billing", *days)
    place.wait_for("daily_billing", "backfill")
    assert place.billed(FILLED) == 1
    assert (place.folder / "reports" / str(FILLED) / "bill.pdf").exists()


def test_a_day_that_has_not_begun_fails_with_its_code_and_the_operator_is_told(place: Place) -> None:
    with pytest.raises(AirflowError, match=r": 400 .*'yesterday' is not a 'date'"):
        place.airflow.trigger("daily_billing", {"day": "yesterday"})
    run = place.airflow.trigger("daily_billing", {"day": str(NEVER)})
    assert place.airflow.wait("daily_billing", run) == "failed"
    refused = f"rate: AirflowFailException: day_in_future: {NEVER} has not begun"
    assert place.airflow.errors("daily_billing", run) == [refused]
    deadline = time.monotonic() + 60  # the task tells after Airflow knows that it has failed
    subject = f"[Tallybook] daily_billing failed in rate: day_in_future: {NEVER} has not begun"
    while subject not in (told := [mail["Subject"] for mail in place.mails("operator@example.com")]):
        assert time.monotonic() < deadline, told
        time.sleep(0.5)
