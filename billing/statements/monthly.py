"""The monthly steps, as Airflow and the command line call them: write the statements, mail the whole."""

from __future__ import annotations

from datetime import date, tzinfo
from pathlib import Path
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from billing.bills import close_day
from billing.daily import deliver_mails
from billing.errors import DayError
from billing.exports.closed_bills import Period, month_of, open_days, told_days
from billing.ledger import closed_days, lock_ledger, open_ledger, reading, writing
from billing.mail.outbox import enqueue, is_enqueued
from billing.owing import owing_days
from billing.prices.book import kept_tariff
from billing.selection import Selection
from billing.settings import BillingSettings
from billing.statements.mail import compose_statement, statement_pdf
from billing.statements.statement import Statement, statement
from billing.statements.text import as_csv, as_text
from billing.tables import bill_lines
from tallybook.calendar import month_start
from tallybook.files import write_whole


def days_to_close(settings: BillingSettings, month: date) -> list[date]:
    """Days of the month that are not closed, and have usage or are not over.

    When there are none, days that nobody used, as long as something owed would come onto their bills.
    Raises: ExportError: the month has not begun (code period_in_future).
    """
    with reading(_ledger(settings)) as connection:
        return _to_close(connection, month_of(month, settings.zone), settings.zone)


def write_statements(settings: BillingSettings, month: date) -> Path:
    """Write the month's statement, and that of each department, as text, CSV and PDF; the folder they are in.

    Days of the month that nobody used are closed first: what comes late for one of them is on a later bill.
    Raises: DayError: a day of the month is open (code month_open). ExportError: no bills (no_bills).
    """
    folder = settings.reports_dir / f"{month:%Y-%m}"
    ledger = _ledger(settings)
    _close_unused(settings, ledger, month)
    with reading(ledger) as connection:
        whole = _final(settings, connection, month, Selection())
        departments = sorted({part.department for part in whole.parts})
        _write(folder / "statement", whole, settings)
        for name in departments:
            told = _final(settings, connection, month, Selection(department=name))
            _write(folder / f"statement-{quote(name, safe='@ ')}", told, settings)
    return folder


def mail_statement(settings: BillingSettings, month: date) -> list[str]:
    """Mail finance the month's statement, once, and deliver every mail that waits; what became of each.

    Raises: as `write_statements`, and MailError (code mail_not_delivered).
    """
    ledger = _ledger(settings)
    _close_unused(settings, ledger, month)
    mail_id = f"monthly-{month:%Y-%m}-{settings.mail_language}"
    with reading(ledger) as connection:
        there = is_enqueued(connection, mail_id)
        told = None if there else _final(settings, connection, month, Selection())
    if told is not None:
        message = compose_statement(
            told,
            mail_id=mail_id,
            language=settings.mail_language,
            sender=settings.mail_from,
            recipients=settings.mail_to,
            zone=settings.zone,
        )
        with writing(ledger) as connection:
            enqueue(connection, mail_id, month_start(month), message)
    return deliver_mails(settings, [mail_id]) or [f"{mail_id}: mailed before"]


def _close_unused(settings: BillingSettings, ledger: Engine, month: date) -> None:
    """Close the days of a month that nobody used, if it has bills and nothing of it is to be billed.

    Without it, an event that came late for such a day would make a bill of this month when its statement is
    out. Their bills are empty: while something is owed that would be on them, they are not closed.
    Raises: DayError: a day of the month is open (code month_open).
    """
    wanted = month_of(month, settings.zone)
    with writing(ledger) as connection:
        lock_ledger(connection)
        billed = sa.exists().where(bill_lines.c.day.between(wanted.first, wanted.last))
        if not connection.scalar(sa.select(billed)):
            return
        if left := _to_close(connection, wanted, settings.zone):
            raise DayError("month_open", f"{month:%Y-%m} has open days: {told_days(left)}")
        tariff = kept_tariff(connection)
        for day in _unclosed(connection, wanted):
            close_day(connection, day, tariff, settings.zone)


def _to_close(connection: Connection, wanted: Period, zone: tzinfo) -> list[date]:
    """See `days_to_close`."""
    if found := open_days(connection, wanted, zone):
        return found
    prices = kept_tariff(connection).price_list
    return [day for day in _unclosed(connection, wanted) if owing_days(connection, day, prices)]


def _unclosed(connection: Connection, wanted: Period) -> list[date]:
    return sorted(set(wanted.days) - closed_days(connection, wanted.days))


def _final(settings: BillingSettings, connection: Connection, month: date, whose: Selection) -> Statement:
    told = statement(connection, month, settings.zone, whose)
    if told.open_days:
        raise DayError("month_open", f"{month:%Y-%m} has open days: {told_days(list(told.open_days))}")
    return told


def _write(place: Path, told: Statement, settings: BillingSettings) -> None:
    write_whole(place.with_name(f"{place.name}.txt"), as_text(told).encode())
    write_whole(place.with_name(f"{place.name}.csv"), as_csv(told))
    write_whole(place.with_name(f"{place.name}.pdf"), statement_pdf(told, settings.mail_language))


def _ledger(settings: BillingSettings) -> Engine:
    return open_ledger(settings.ledger_url, settings.time_zone)
