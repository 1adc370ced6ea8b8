"""The monthly steps: nothing before every day is closed, then files and one mail, also when run again."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from datetime import date, timedelta
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path

import pytest

from billing.bills import close_day
from billing.errors import DayError, ExportError
from billing.ledger import open_ledger, reading, writing
from billing.prices.book import kept_tariff
from billing.settings import BillingSettings
from billing.statements import monthly
from billing.statements.statement import statement
from tallybook.calendar import today
from tests.billing.conftest import TIME_ZONE
from tests.billing.days import at, bring
from tests.billing.factories import ZONE, an_event
from tests.billing.hand_made import Bills

JULY = date(2026, 7, 1)


@pytest.fixture
def settings(sqlite_url: str, tmp_path: Path) -> BillingSettings:
    """A July with the bills of two departments, of which one has a name that no file could have."""
    ledger = open_ledger(sqlite_url, TIME_ZONE)
    with writing(ledger) as connection:
        bills = Bills(connection)
        bills.close(JULY, date(2026, 7, 20))
        bills.add(JULY, 5_000)
        bills.add(date(2026, 7, 20), 3_000, department="r&d/\u202eevil", project="search")
        bills.write()
    ledger.dispose()
    return BillingSettings(
        ledger_url=sqlite_url, time_zone=TIME_ZONE, smtp_url=None,
        reports_dir=tmp_path / "reports", outbox_dir=tmp_path / "outbox",
    )  # fmt: skip


def mails(settings: BillingSettings) -> list[EmailMessage]:
    files = sorted(settings.outbox_dir.glob("*.eml"))
    return [message_from_bytes(file.read_bytes(), policy=default) for file in files]


def reopen(settings: BillingSettings, day: date) -> None:
    ledger = open_ledger(settings.ledger_url, TIME_ZONE)
    with writing(ledger) as connection:
        Bills(connection).close(day, state="draft")
    ledger.dispose()


def test_a_month_is_written_as_a_whole_and_by_department(settings: BillingSettings) -> None:
    folder = monthly.write_statements(settings, JULY)
    assert folder == settings.reports_dir / "2026-07"
    names = ["statement", "statement-r%26d%2F%E2%80%AEevil", "statement-retail"]
    assert {file.name for file in folder.iterdir()} == {
        f"{name}.{kind}" for name in names for kind in ("csv", "pdf", "txt")
    }
    tokens = {}
    for name in names:
        rows = csv.DictReader(io.StringIO((folder / f"{name}.csv").read_text("utf-8-sig")))
        tokens[name] = sum(int(row["quantity_tokens"]) for row in rows)
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert list(tokens.values()) == [8_000, 3_000, 5_000]


def test_a_month_written_again_is_the_same_bytes(settings: BillingSettings) -> None:
    folder = monthly.write_statements(settings, JULY)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    monthly.write_statements(settings, JULY)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


@pytest.mark.parametrize("step", [monthly.write_statements, monthly.mail_statement])
def test_what_comes_late_for_a_day_that_nobody_used_is_not_on_a_statement_that_is_out(
    settings: BillingSettings, step: Callable[[BillingSettings, date], object]
) -> None:
    step(settings, JULY)
    ledger = open_ledger(settings.ledger_url, TIME_ZONE)
    with reading(ledger) as connection:
        before = statement(connection, JULY, ZONE)
    yesterday = today(ZONE) - timedelta(days=1)
    bring(ledger, [an_event(time=at(date(2026, 7, 10)))])
    for day in (date(2026, 7, 10), yesterday):  # the first is closed already
        with writing(ledger) as connection:
            found = close_day(connection, day, kept_tariff(connection), ZONE)
    with reading(ledger) as connection:
        assert statement(connection, JULY, ZONE) == before
    assert (found.proof.corrected_days, found.proof.event_tokens) == ((date(2026, 7, 10),), 120)
    ledger.dispose()


def test_what_waits_for_the_next_bill_is_not_billed_by_a_statement(settings: BillingSettings) -> None:
    ledger = open_ledger(settings.ledger_url, TIME_ZONE)
    bring(ledger, [an_event(time=at(JULY))])  # its day is closed
    waited_for = monthly.days_to_close(settings, JULY)
    assert (waited_for[0], len(waited_for)) == (date(2026, 7, 2), 29)
    with pytest.raises(DayError) as refused:
        monthly.write_statements(settings, JULY)
    assert refused.value.code == "month_open"
    with writing(ledger) as connection:
        close_day(connection, today(ZONE) - timedelta(days=1), kept_tariff(connection), ZONE)
    assert monthly.days_to_close(settings, JULY) == []
    monthly.write_statements(settings, JULY)
    ledger.dispose()


def test_finance_gets_one_mail_however_often_it_is_asked_for(settings: BillingSettings) -> None:
    first, second = (monthly.mail_statement(settings, JULY) for _ in range(2))
    assert first[0].startswith("monthly-2026-07-en: written")
    assert second == ["monthly-2026-07-en: mailed before"]
    (mail,) = mails(settings)
    assert mail["Subject"].startswith("Tallybook statement of 2026-07: ")
    assert mail["To"] == ", ".join(settings.mail_to)


def test_a_month_with_an_open_day_is_neither_written_nor_mailed(settings: BillingSettings) -> None:
    reopen(settings, date(2026, 7, 5))
    assert monthly.days_to_close(settings, JULY) == [date(2026, 7, 5)]
    for step in (monthly.write_statements, monthly.mail_statement):
        with pytest.raises(DayError, match="2026-07-05") as refused:
            step(settings, JULY)
        assert refused.value.code == "month_open"
    assert not settings.reports_dir.exists()
    assert mails(settings) == []


def test_a_month_whose_days_are_all_closed_has_none_to_wait_for(settings: BillingSettings) -> None:
    assert monthly.days_to_close(settings, JULY) == []


def test_the_month_that_runs_waits_for_today(settings: BillingSettings) -> None:
    now = today(ZONE)
    assert now in monthly.days_to_close(settings, now.replace(day=1))


def test_a_month_without_bills_or_not_begun_is_refused(settings: BillingSettings) -> None:
    with pytest.raises(ExportError) as without:
        monthly.write_statements(settings, date(2026, 3, 1))
    assert without.value.code == "no_bills"
    with pytest.raises(ExportError) as ahead:
        monthly.days_to_close(settings, (today(ZONE) + timedelta(days=40)).replace(day=1))
    assert ahead.value.code == "period_in_future"
