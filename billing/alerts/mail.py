"""An alert as a mail: plain text, for the outbox."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import datetime
from email.message import EmailMessage
from email.utils import format_datetime

from billing.alerts.robots import Message
from billing.mail.policy import POLICY
from billing.reports.words import shown
from billing.settings import BillingSettings


def alert_mail(
    message: Message, settings: BillingSettings, recipients: Iterable[str], now: datetime
) -> EmailMessage:
    """The mail of a message; the same one makes the same bytes."""
    mail = EmailMessage(POLICY)
    # A header is parsed when it is set: a name like "=?utf-8?q?=0A?=" would be decoded, to a line break here.
    mail["Subject"] = shown(f"{message.head[0]} · {message.changes[0]}").replace("=?", "= ?")
    mail["From"] = settings.mail_from
    mail["To"] = ", ".join(recipients)
    mail["Date"] = format_datetime(now.astimezone(settings.zone))
    digest = hashlib.sha256(message.id.encode()).hexdigest()[:32]
    mail["Message-ID"] = f"<{digest}@{settings.mail_from.rpartition('@')[2].rstrip('>')}>"
    mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: nobody's holiday notice answers it
    mail.set_content(message.text() + "\n")
    return mail
