"""Mails of their own for those who subscribed: many at once, and few in memory.

They have no pictures: ten thousand mails with charts would take an hour. Their bars are part of the page.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from email.message import EmailMessage
from itertools import groupby, islice
from typing import Any

from sqlalchemy.engine import Connection, Engine

from billing.ledger import reading, writing
from billing.mail.bill_csv import read_lines, write_bill
from billing.mail.day import compose
from billing.mail.outbox import enqueue, is_enqueued
from billing.mail.subscriptions import Subscription
from billing.reports.day import owner_reports
from billing.selection import OwnerKind, Owners
from billing.settings import BillingSettings

_AT_ONCE = 250  # mails in memory, and owners in one query


def mail_id(day: date, subscription: Subscription) -> str:
    """A mail of its own for each day and subscription."""
    return f"personal-{day}-{subscription.kind}-{subscription.name}"


def enqueue_mails(
    engine: Engine, settings: BillingSettings, day: date, subscriptions: Sequence[Subscription]
) -> tuple[int, int]:
    """Put the mails of a closed day into the outbox: how many are new there, and how many had nothing to say.

    Run again, or beside another run, each mail is composed once. Who used nothing on that day, and has no
    correction on its bill, gets no mail.
    """
    new = silent = 0
    for kind, several in groupby(sorted(subscriptions, key=_kind_and_name), key=lambda each: each.kind):
        while some := list(islice(several, _AT_ONCE)):
            with reading(engine) as connection:
                missing = [each for each in some if not is_enqueued(connection, mail_id(day, each))]
                mails = list(_compose(connection, settings, day, kind, missing))
            with writing(engine) as connection:
                new += sum(enqueue(connection, name, day, message) for name, message in mails)
            silent += len(missing) - len(mails)
    return new, silent


def _kind_and_name(subscription: Subscription) -> tuple[str, str]:
    return subscription.kind, subscription.name


def _compose(
    connection: Connection, settings: BillingSettings, day: date, kind: OwnerKind, some: list[Subscription]
) -> Iterator[tuple[str, EmailMessage]]:
    owners = Owners(kind, tuple(each.name for each in some))
    column = "user_id" if kind == "user" else "project"
    lines: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for line in read_lines(connection, day, owners):
        lines[line[column]].append(line)
    reports = owner_reports(connection, day, settings.zone, owners)
    for subscription, report in zip(some, reports, strict=True):
        if report.is_empty:
            continue
        name = mail_id(day, subscription)
        yield (
            name,
            compose(
                report,
                mail_id=name,
                language=subscription.language or settings.mail_language,
                sender=settings.mail_from,
                recipients=subscription.to,
                charts={},
                bill=write_bill(lines[subscription.name], simulated=report.simulated),
            ),
        )
