"""What the operator hears of a task that failed, with a ledger and without one."""

from __future__ import annotations

from dataclasses import replace
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path

import pytest

from billing.mail.operator import Failure, tell
from billing.settings import BillingSettings
from tests.billing.mailserver import mail_server

FAILURE = Failure("daily_billing", "manual__1", "close", 4, "day_not_over: 2026-11-22 is not over")


@pytest.fixture
def settings(tmp_path: Path, sqlite_url: str) -> BillingSettings:
    return BillingSettings(ledger_url=sqlite_url, outbox_dir=tmp_path / "outbox", smtp_url=None)


def mails(settings: BillingSettings) -> list[EmailMessage]:
    files = sorted(settings.outbox_dir.glob("*.eml"))
    return [message_from_bytes(file.read_bytes(), policy=default) for file in files]


def test_the_mail_says_which_task_failed_and_why(settings: BillingSettings) -> None:
    tell(settings, FAILURE)
    [mail] = mails(settings)
    assert mail["To"] == "operator@example.com"
    assert mail["Subject"] == f"[Tallybook] daily_billing failed in close: {FAILURE.error}"
    assert "Task:   close, try 4\r\n" in mail.get_content()


def test_a_failure_is_told_once_and_the_next_try_again(settings: BillingSettings) -> None:
    tell(settings, FAILURE)
    assert tell(settings, FAILURE) == []  # another part of the same mapped task
    tell(settings, replace(FAILURE, attempt=8))
    assert len(mails(settings)) == 2


def test_no_error_forges_a_header_or_a_line(settings: BillingSettings) -> None:
    tell(settings, replace(FAILURE, error="x\r\nBcc: thief@example.com\n\n=?utf-8?q?=0A?=" + "y" * 9000))
    [mail] = mails(settings)
    assert mail["Bcc"] is None
    assert len(mail.get_content().splitlines()) == 7
    assert len(mail.get_content()) < 3000


def test_without_a_ledger_the_mail_goes_straight_to_the_server(settings: BillingSettings) -> None:
    with mail_server() as server:
        away = settings.model_copy(
            update={
                "ledger_url": "postgresql+psycopg://nobody@127.0.0.1:1/none",
                "smtp_url": BillingSettings(smtp_url=f"smtp://localhost:{server.port}").smtp_url,
            }
        )
        [told] = tell(away, FAILURE)
        assert "the ledger is away" in told
        assert [taken.recipients for taken in server.taken] == [["operator@example.com"]]


def test_without_ledger_and_server_it_says_that_nobody_was_told(settings: BillingSettings) -> None:
    away = BillingSettings(
        ledger_url="postgresql+psycopg://nobody@127.0.0.1:1/none", smtp_url="smtp://127.0.0.1:1"
    )
    [told] = tell(away, FAILURE)
    assert "nobody was told: smtp://127.0.0.1:1" in told
