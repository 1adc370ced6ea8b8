"""A real Airflow, started as `tallybook airflow up` starts it, runs our DAGs by every way there is.

One Airflow for all of it: by schedule and by asset, on the command line, by REST, as a back-fill.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from datetime import time as clock
from email import message_from_bytes
from email.message import Message
from email.policy import default
from pathlib import Path

import pytest

from tallybook.airflow import DAGS_DIR, AirflowError, EmbeddedAirflow
from tallybook.calendar import today
from tests.dags.conftest import PRICES, ZONE, an_event

YESTERDAY = today(ZONE) - timedelta(days=1)
BY_COMMAND, BY_REST, FILLED, NEVER = (
    date(2026, 10, 18), date(2026, 10, 19), date(2026, 9, 18), date(2199, 1, 1)
)  # fmt: skip
DAYS = (BY_COMMAND, BY_REST, FILLED, YESTERDAY)


class Place:
    """A running Airflow, and the folder with the journal, the ledger and the outbox that its DAGs work on."""

    def __init__(self, airflow: EmbeddedAirflow, folder: Path) -> None:
        self.airflow, self.folder = airflow, folder

    def mails(self) -> list[Message]:
        """What is in the outbox, in the order of subjects."""
        files = (self.folder / "outbox").glob("*.eml")
        return sorted(
            (message_from_bytes(file.read_bytes(), policy=default) for file in files),
            key=lambda m: m["Subject"],
        )

    def wait_for(self, dag_id: str, run_type: str) -> str:
        """The end of a run that Airflow started by itself: its state."""
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            for run, how, _ in self.airflow.runs(dag_id):
                if how == run_type:
                    return self.airflow.wait(dag_id, run)
            time.sleep(1)
        raise AssertionError(f"no {run_type} run of {dag_id}: {self.airflow.runs(dag_id)}")

    def command(self, *arguments: str) -> str:
        """Give Airflow one of its own commands, as an operator would in a shell."""
        command = [sys.executable, "-m", "tallybook.cli", "airflow", "do", "--folder", str(self.airflow.home)]
        told = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
        assert told.returncode == 0, told.stderr
        return told.stdout


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


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("place")
    (folder / "journal").mkdir()
    for day in DAYS:
        events = [an_event(datetime.combine(day, clock(12), tzinfo=ZONE), f"user-{n}", 100) for n in range(2)]
        lines = (json.dumps(event.to_record()) + "\n" for event in events)
        (folder / "journal" / f"{day}.jsonl").write_text("".join(lines))
    subscribed = '[[subscriptions]]\nuser = "user-1"\nto = ["one@example.com"]\nlanguage = "zh"\n'
    (folder / "subscriptions.toml").write_text(subscribed)
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
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        with EmbeddedAirflow(folder / "airflow", scheduled=True) as airflow:
            for dag in sorted(file.stem for file in DAGS_DIR.glob("*.py")):
                airflow.wait_until_ready(dag, 180)
            yield Place(airflow, folder)
        assert processes_of(airflow.home) == []


def test_by_schedule_usage_is_stored_and_the_complete_day_starts_its_billing(place: Place) -> None:
    assert place.wait_for("keep_up", "scheduled") == "success"
    assert place.wait_for("daily_billing", "scheduled") == "success"
    assert place.wait_for("daily_billing", "asset_triggered") == "success"
    subjects = [mail["Subject"] for mail in place.mails() if str(YESTERDAY) in mail["Subject"]]
    assert len(subjects) == 1  # however many runs there were


def test_days_are_billed_by_command_and_by_rest(place: Place) -> None:
    place.command(
        "dags", "trigger", "daily_billing", "--run-id", "one", "--conf", f'{{"day": "{BY_COMMAND}"}}'
    )
    second = place.airflow.trigger("daily_billing", {"day": str(BY_REST), "user": None})
    ended = [place.airflow.wait("daily_billing", run) for run in ("one", second)]
    assert ended == ["success", "success"], place.airflow.errors("daily_billing", "one")
    told = [
        (mail["To"], day) for mail in place.mails() for day in DAYS if str(day) in str(mail["Message-ID"])
    ]
    assert told == []  # Message-IDs name nothing
    to = [mail["To"] for mail in place.mails()]
    assert to.count("one@example.com") >= 2
    with pytest.raises(AirflowError, match=r": 400 .*'yesterday' is not a 'date'"):
        place.airflow.trigger("daily_billing", {"day": "yesterday"})


def test_a_range_of_days_is_filled_in(place: Place) -> None:
    days = ["--from-date", str(FILLED), "--to-date", str(FILLED + timedelta(days=1))]
    place.command("backfill", "create", "--dag-id", "daily_billing", *days)
    assert place.wait_for("daily_billing", "backfill") == "success"
    assert (place.folder / "reports" / str(FILLED) / "bill.pdf").exists()


def test_a_day_that_has_not_begun_fails_with_its_code_and_the_operator_is_told(place: Place) -> None:
    run = place.airflow.trigger("daily_billing", {"day": str(NEVER)})
    assert place.airflow.wait("daily_billing", run) == "failed"
    refused = f"rate: AirflowFailException: day_in_future: {NEVER} has not begun"
    assert place.airflow.errors("daily_billing", run) == [refused]
    deadline = time.monotonic() + 60  # the task tells after Airflow knows that it has failed
    while not (told := [mail for mail in place.mails() if mail["To"] == "operator@example.com"]):
        assert time.monotonic() < deadline, "the operator was not told"
        time.sleep(0.5)
    assert [mail["Subject"] for mail in told if "day_in_future" in mail["Subject"]] == [
        f"[Tallybook] daily_billing failed in rate: day_in_future: {NEVER} has not begun"
    ]


def test_a_month_is_stated_by_rest(place: Place) -> None:
    assert place.wait_for("monthly_statements", "scheduled") == "success"
    run = place.airflow.trigger("monthly_statements", {"month": f"{BY_REST:%Y-%m}"})
    assert place.airflow.wait("monthly_statements", run) == "success"
    assert (place.folder / "reports" / f"{BY_REST:%Y-%m}" / "statement-retail.pdf").exists()
    assert any(f"statement of {BY_REST:%Y-%m}" in mail["Subject"] for mail in place.mails())
