"""The daily steps, as Airflow and the command line call them: ingest, rate, close, report, mail.

Each is a transaction over one billing day: run twice, or again after a crash, the result is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import date
from email.message import EmailMessage
from pathlib import Path
from threading import Event
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from billing import audit, bills
from billing.audit import Verified
from billing.backlog import behind
from billing.closure import prove
from billing.costs.file import CostList, read_costs
from billing.errors import DayError, MailError, SourceError
from billing.ingest import ingest as ingest_journal
from billing.kafka import Topic, drain, follow
from billing.ledger import closed_days, hold_events, lock_ledger, open_ledger, reading, writing
from billing.mail.bill_csv import read_lines, write_bill
from billing.mail.bill_pdf import bill_pdf
from billing.mail.day import compose
from billing.mail.outbox import deliver, enqueue, is_enqueued
from billing.mail.personal import enqueue_mails
from billing.mail.subscriptions import of_shard, read_subscriptions
from billing.prices.book import kept_tariff, sync_prices
from billing.prices.file import read_tariff
from billing.prices.tariff import Tariff
from billing.reports.charts import draw_charts
from billing.reports.day import day_report
from billing.selection import Selection
from billing.settings import BillingSettings
from billing.store import IngestResult
from billing.tables import bill_days
from tallybook.calendar import ONE_DAY, day_interval, today
from tallybook.files import write_whole

_A_SHARD = 1000  # subscribers a task


def ingest(settings: BillingSettings) -> IngestResult:
    """Store what the journal, and Kafka if there is one, hold and the ledger does not have yet."""
    ledger = _ledger(settings)
    result = IngestResult()
    try:
        result.add(ingest_journal(ledger, settings.journal_dir, settings.zone))
    finally:  # a damaged segment does not keep Kafka's events back
        if (topic := Topic.of(settings)) is not None:
            result.add(drain(ledger, topic, settings.zone))
    return result


def follow_kafka(settings: BillingSettings, stop: Event) -> IngestResult:
    """Store what comes by Kafka, as one of its group, until `stop` is set; see `billing.kafka.follow`."""
    topic = Topic.of(settings)
    if topic is None:
        raise SourceError("no_kafka", "the setting kafka_brokers names no brokers to follow")
    return follow(_ledger(settings), topic, settings.zone, stop)


def rate(settings: BillingSettings, day: date) -> bills.Rated:
    """Make the day's draft lines anew at the prices of the price list.

    Raises: DayError: the day has not begun.
    """
    bills.check_begun(day, settings.zone)
    with writing(_ledger(settings)) as connection:
        return bills.rate_day(connection, day, _tariff(connection, settings))


def close(
    settings: BillingSettings,
    day: date,
    *,
    early: bool = False,
    caught_up: Callable[[bills.Closing], None] = lambda closing: None,
) -> bills.Closing:
    """Close the day if its events, aggregates and lines agree; see `billing.bills.close_day`.

    Days before it that have usage and that nobody closed, because Airflow was down, are closed first;
    `caught_up` is told of each, also when a later one is refused.
    """
    ledger = _ledger(settings)
    with reading(ledger) as connection:
        if not closed_days(connection, [day]):
            bills.check_closable(day, settings.zone, early=early)
        missed = bills.days_to_catch_up(connection, day, settings.zone)
    for earlier in missed:
        with writing(ledger) as connection:
            tariff = _tariff(connection, settings)
            closing = bills.close_day(connection, earlier, tariff, settings.zone, closed_with=day)
        caught_up(closing)
    with writing(ledger) as connection:
        return bills.close_day(connection, day, _tariff(connection, settings), settings.zone, early=early)


def report(settings: BillingSettings, day: date, user: str | None = None) -> Path:
    """Draw the charts and write the bill as CSV, of one user or of all; the folder they are in.

    Days that were closed together with this one get their folders too.
    """
    with reading(_ledger(settings)) as connection:
        for each in [*_caught_up(connection, day), day]:
            folder = _report(settings, connection, each, user)
    return folder


def mail(settings: BillingSettings, day: date, user: str | None = None) -> list[str]:
    """Compose the mail of a closed day, once, and deliver every mail that waits; what became of each.

    Days that were closed together with this one are mailed too. A day that is proven no more is not
    mailed; a mail that was delivered is not delivered again.
    Raises: DayError: the day is not closed (code day_not_closed). ClosureError: see `billing.closure`.
        MailError: somebody did not take a mail of this run (code mail_not_delivered): call again later.
    """
    ledger = _ledger(settings)
    with reading(ledger) as connection:
        hold_events(connection)  # the day is proven once more
        _check_closed(connection, day)
        mails = {_mail_id(settings, each, user): each for each in [*_caught_up(connection, day), day]}
        messages = {
            mail_id: _compose(settings, connection, each, user, mail_id)
            for mail_id, each in mails.items()
            if not is_enqueued(connection, mail_id)
        }
    with writing(ledger) as connection:
        for mail_id, message in messages.items():
            enqueue(connection, mail_id, mails[mail_id], message)
    return deliver_mails(settings, mails) or [f"{', '.join(mails)}: mailed before"]


def personal(settings: BillingSettings, day: date, shard: int = 0, shards: int = 1) -> tuple[int, int]:
    """Put the mails of a closed day's subscribers, or of one shard of them, into the outbox, each once.

    Days that were closed together with this one are mailed too.
    Returns: how many are new there, and of how many nothing was to be told of this day.
    Raises: DayError: the day is not closed. SubscriptionsError: the file is wrong.
    """
    some = of_shard(read_subscriptions(settings.subscriptions_file), shard, shards)
    ledger = _ledger(settings)
    with reading(ledger) as connection:
        _check_closed(connection, day)
        days = [*_caught_up(connection, day), day]
    found = [enqueue_mails(ledger, settings, each, some) for each in days]
    return sum(new for new, _ in found), found[-1][1]


def personal_shards(settings: BillingSettings) -> int:
    """Over how many tasks the subscribers' mails are spread."""
    return -(-len(read_subscriptions(settings.subscriptions_file)) // _A_SHARD)


def complete_day(settings: BillingSettings) -> date | None:
    """Yesterday, once nothing of it waits in the journal and until it is closed."""
    day = today(settings.zone) - ONE_DAY
    with reading(_ledger(settings)) as connection:
        if closed_days(connection, [day]):
            return None
    return None if backlog(settings, day) else day


def deliver_mails(settings: BillingSettings, wanted: Collection[str] = ()) -> list[str]:
    """Deliver every mail that waits; what became of each.

    Raises: MailError: somebody did not take one of the `wanted` mails (code mail_not_delivered).
    """
    deliveries = deliver(_ledger(settings), settings)
    for delivery in deliveries:
        if delivery.mail_id in wanted and delivery.error is not None:
            raise MailError("mail_not_delivered", f"{delivery.mail_id} to {delivery.place}: {delivery.error}")
    return [f"{d.mail_id}: {d.state}, {d.place}{f' ({d.error})' if d.error else ''}" for d in deliveries]


def backlog(settings: BillingSettings, day: date) -> list[str]:
    """Journal segments with events of the day, or of an earlier one, that ingest could not store yet."""
    ends = day_interval(day, settings.zone).end
    return behind(_ledger(settings), settings.journal_dir, ends)


def rehearse(
    settings: BillingSettings, day: date, user: str | None = None, *, early: bool = False
) -> list[str]:
    """Do all that billing the day would do, tell it, and leave everything as it was: nothing is stored.

    Raises: what `close` and `mail` would raise.
    """
    bills.check_begun(day, settings.zone)
    with writing(_ledger(settings)) as connection, connection.begin_nested() as all_of_it:
        tariff = _tariff(connection, settings)
        if not closed_days(connection, [day]):
            bills.check_closable(day, settings.zone, early=early)
        missed = [
            bills.close_day(connection, earlier, tariff, settings.zone, closed_with=day)
            for earlier in bills.days_to_catch_up(connection, day, settings.zone)
        ]
        closing = bills.close_day(connection, day, tariff, settings.zone, early=early)
        message = _compose(settings, connection, day, user, "rehearsal", pictures=False)
        all_of_it.rollback()
    text = message.get_body(("plain",))
    done = "would be closed" if closing.newly_closed else "is closed already"
    return [
        *(f"{each.day} is open, and would be closed first: {each.lines:,} lines." for each in missed),
        f"{day} {done}: {closing.lines:,} lines, {closing.proof.line_tokens:,} tokens; nothing was stored.",
        f"Subject: {message['Subject']}",
        text.get_content() if text else "",
    ]


def verify(settings: BillingSettings) -> Verified:
    """Recompute every closed bill and compare it with its seal; see `billing.audit.verify`."""
    with reading(_ledger(settings)) as connection:
        return audit.verify(connection)


def _check_closed(connection: Connection, day: date) -> None:
    if not closed_days(connection, [day]):
        raise DayError("day_not_closed", f"{day} is not closed: close it, then mail it")


def _caught_up(connection: Connection, day: date) -> list[date]:
    """Days that the closing of this one caught up with."""
    query = sa.select(bill_days.c.day).where(bill_days.c.closed_with == day).order_by(bill_days.c.day)
    return list(connection.scalars(query))


def _mail_id(settings: BillingSettings, day: date, user: str | None) -> str:
    return "-".join(["daily", day.isoformat(), settings.mail_language, *([user] if user else [])])


def _report(settings: BillingSettings, connection: Connection, day: date, user: str | None) -> Path:
    told = day_report(connection, day, settings.zone, user, costs=_costs(settings))
    lines = read_lines(connection, day, Selection(user))
    folder = settings.reports_dir / day.isoformat()
    if user is not None:
        folder /= f"user={quote(user, safe='@ ')}"
    for name, image in draw_charts(told, settings.mail_language).items():
        write_whole(folder / f"{name}.png", image)
    write_whole(folder / "bill.csv", write_bill(lines, simulated=told.simulated))
    write_whole(folder / "bill.pdf", bill_pdf(told, lines, settings.mail_language))
    return folder


def _compose(
    settings: BillingSettings,
    connection: Connection,
    day: date,
    user: str | None,
    mail_id: str,
    *,
    pictures: bool = True,
) -> EmailMessage:
    told = day_report(connection, day, settings.zone, user, costs=_costs(settings))
    lines = read_lines(connection, day, Selection(user))
    proven = prove(connection, day)
    proof = proven if user is None else None  # it is of the whole day
    return compose(
        told,
        mail_id=mail_id,
        language=settings.mail_language,
        sender=settings.mail_from,
        recipients=settings.mail_to,
        charts=draw_charts(told, settings.mail_language) if pictures else {},
        bill=write_bill(lines, simulated=told.simulated),
        pdf=bill_pdf(told, lines, settings.mail_language, proof),
        proof=proof,
    )


def _costs(settings: BillingSettings) -> CostList | None:
    """What machines cost, where somebody has said it."""
    return read_costs(settings.costs_file) if settings.costs_file.exists() else None


def _ledger(settings: BillingSettings) -> Engine:
    return open_ledger(settings.ledger_url, settings.time_zone)


def _tariff(connection: Connection, settings: BillingSettings) -> Tariff:
    lock_ledger(connection)  # no import comes between this and the bill
    if settings.prices_import == "confirmed":
        return kept_tariff(connection)
    return sync_prices(connection, read_tariff(settings.prices_file))
