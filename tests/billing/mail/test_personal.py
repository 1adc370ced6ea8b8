"""Mails of their own: the same numbers as a report read for one alone, each once, whatever is killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from datetime import date, timedelta
from email import message_from_bytes
from email.policy import default
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from billing.ledger import reading
from billing.mail.personal import enqueue_mails, mail_id
from billing.mail.subscriptions import Subscription
from billing.reports.day import DayReport, day_report, owner_reports
from billing.selection import Owners
from billing.settings import BillingSettings
from billing.tables import mails
from tallybook.usage import UsageEvent
from tests.billing.days import at, bring, close
from tests.billing.factories import DAY, ZONE, an_event
from tests.billing.mailserver import mail_server

KILLS = int(os.environ.get("TALLYBOOK_DRILL_KILLS", "3"))
BEFORE = DAY - timedelta(days=1)
SETTINGS = BillingSettings(smtp_url=None)


def a_busy_day(ledger: Engine, users: int = 6) -> None:
    for day, requests in ((BEFORE, 2), (DAY, 3)):
        bring(ledger, [_request(day, who, n) for who in range(users) for n in range(requests + who % 3)])
        if day == DAY:
            bring(ledger, [an_event(time=at(BEFORE), user="user-1", project="p1")])  # late
        close(ledger, day)


def _request(day: date, who: int, n: int) -> UsageEvent:
    hour = (6 + n + who) % 24
    return an_event(time=at(day, hour), user=f"user-{who}", project=f"p{who % 2}", prompt_tokens=50 + who)


def alone(report: DayReport) -> DayReport:
    """Without what only a report of one alone reads: requests of earlier days."""
    trend = tuple(replace(day, requests=0) for day in report.trend)
    return replace(report, trend=trend)


def test_reports_read_together_are_those_read_alone(ledger: Engine) -> None:
    a_busy_day(ledger)
    with reading(ledger) as connection:
        users = Owners("user", ("user-0", "user-1", "user-5", "nobody"))
        for report in owner_reports(connection, DAY, ZONE, users):
            assert alone(report) == alone(day_report(connection, DAY, ZONE, user=report.user))
        for report in owner_reports(connection, DAY, ZONE, Owners("project", ("p0", "p1"))):
            assert alone(report) == alone(day_report(connection, DAY, ZONE, project=report.project))


def test_each_subscriber_gets_their_own_lines_and_nobody_elses(ledger: Engine) -> None:
    a_busy_day(ledger)
    subscribed = [
        Subscription("user", "user-1", ("one@example.com",)),
        Subscription("project", "p0", ("owner@example.com",), "zh"),
        Subscription("user", "on-holiday", ("away@example.com",)),
    ]
    assert enqueue_mails(ledger, SETTINGS, DAY, subscribed) == (2, 1)
    assert enqueue_mails(ledger, SETTINGS, DAY, subscribed) == (0, 1)
    with reading(ledger) as connection:
        kept = {row.id: row.message for row in connection.execute(sa.select(mails))}
    assert set(kept) == {mail_id(DAY, each) for each in subscribed[:2]}
    user = message_from_bytes(kept[mail_id(DAY, subscribed[0])], policy=default)
    project = message_from_bytes(kept[mail_id(DAY, subscribed[1])], policy=default)
    assert (user["To"], project["To"]) == ("one@example.com", "owner@example.com")
    assert "user user-1" in user["Subject"]
    assert "项目 p0" in project["Subject"]
    [csv] = user.iter_attachments()
    assert "user-1" in csv.get_content()
    assert "user-2" not in csv.get_content()
    html = user.get_body(("html",))
    assert html is not None
    assert 'class="today"' in html.get_content()


# Imports done, then the work: a kill lands in the work, not in Python's start.
WORK = """
import sys
from datetime import date
from billing import daily
from billing.settings import BillingSettings
settings = BillingSettings()
print("ready", flush=True)
daily.personal(settings, date.fromisoformat(sys.argv[1]))
daily.deliver_mails(settings)
print("done", flush=True)
"""


def test_killing_composing_and_delivering_loses_no_mail_and_repeats_at_most_one_a_kill(
    sqlite_ledger: Engine, tmp_path: Path
) -> None:
    users = 120
    a_busy_day(sqlite_ledger, users)
    entries = (f'[[subscriptions]]\nuser = "user-{n}"\nto = ["u{n}@example.com"]\n' for n in range(users))
    (tmp_path / "subscriptions.toml").write_text("".join(entries))
    chance = random.Random(11)  # noqa: S311  # when to kill is no secret
    with mail_server() as server:
        environment = {
            **os.environ,
            "TALLYBOOK_LEDGER_URL": str(sqlite_ledger.url),
            "TALLYBOOK_SUBSCRIPTIONS_FILE": str(tmp_path / "subscriptions.toml"),
            "TALLYBOOK_SMTP_URL": f"smtp://localhost:{server.port}",
        }
        command = [sys.executable, "-c", WORK, str(DAY)]
        for _ in range(KILLS):
            worker = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
            assert worker.stdout is not None
            assert worker.stdout.readline() == b"ready\n"
            taken, until = len(server.taken), time.monotonic() + chance.uniform(0.05, 3)
            while time.monotonic() < until and len(server.taken) < taken + chance.randrange(1, 40):
                time.sleep(0.01)
            worker.send_signal(signal.SIGKILL)
            worker.wait()
            worker.stdout.close()
        subprocess.run(command, env=environment, check=True)
        got = Counter(each.message["Message-ID"] for each in server.taken)
        assert sorted({each.recipients[0] for each in server.taken}) == sorted(
            f"u{n}@example.com" for n in range(users)
        )
        assert len(got) == users
        assert len(server.taken) - users <= KILLS
