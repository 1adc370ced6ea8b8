"""The mail that tells the operator of a task that failed for good: short, plain, once a try."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from email.message import EmailMessage

from sqlalchemy.exc import OperationalError

from billing.errors import BillingError, LedgerError
from billing.ledger import open_ledger, writing
from billing.mail.day import headed
from billing.mail.outbox import deliver, enqueue, file_name
from billing.mail.policy import POLICY
from billing.mail.smtp import SmtpServer
from billing.reports.words import shown
from billing.settings import BillingSettings
from tallybook.calendar import billing_day
from tallybook.files import write_whole

_ERROR_LENGTH = 2_000  # characters; the log has the rest


@dataclass(frozen=True, slots=True)
class Failure:
    """A task of a run of a DAG that failed, at which try, and the error in one line."""

    dag: str
    run: str
    task: str
    attempt: int
    error: str

    @property
    def mail_id(self) -> str:
        """One mail a task and try, however many parts of a mapped task fail."""
        return f"failure-{self.dag}-{self.run}-{self.task}-{self.attempt}"


def tell(settings: BillingSettings, failure: Failure) -> list[str]:
    """Put the mail into the outbox and deliver what waits there; what became of it, in lines for a log.

    The ledger may be what failed: then the mail is handed over without the outbox, and is lost if that fails.
    """
    now = datetime.now(timezone.utc)
    message = compose(settings, failure, now)
    try:
        ledger = open_ledger(settings.ledger_url, settings.time_zone)
        with writing(ledger) as connection:
            enqueue(connection, failure.mail_id, billing_day(now, settings.zone), message)
        found = [d for d in deliver(ledger, settings) if d.mail_id == failure.mail_id]
        return [f"{d.mail_id}: {d.state}, {d.place}{f' ({d.error})' if d.error else ''}" for d in found]
    except (LedgerError, OperationalError) as error:
        return [f"{failure.mail_id}: the ledger is away ({error}); {_hand_over(settings, failure, message)}"]


def compose(settings: BillingSettings, failure: Failure, now: datetime) -> EmailMessage:
    """Write the mail; whatever the error holds stays in its lines."""
    message = headed(
        f"[Tallybook] {failure.dag} failed in {failure.task}: {shown(failure.error)[:120]}",
        settings.mail_from,
        settings.operator_mail_to,
        mail_id=failure.mail_id,
        date=now.astimezone(settings.zone),
    )
    message.set_content(
        f"DAG:    {failure.dag}\n"
        f"Run:    {shown(failure.run)}\n"
        f"Task:   {failure.task}, try {failure.attempt}\n"
        f"Error:  {shown(failure.error)[:_ERROR_LENGTH]}\n"
        "\n"
        "Its retries are over. The task's log in Airflow tells more. Once the cause is gone, clear the task\n"
        "or trigger the run again: every task may run twice.\n"
    )
    return message


def _hand_over(settings: BillingSettings, failure: Failure, message: EmailMessage) -> str:
    content = message.as_bytes(policy=POLICY)
    try:
        if settings.smtp_url is None:
            file = settings.outbox_dir / file_name(failure.mail_id)
            write_whole(file, content)
            told = f"written, {file}"
        else:
            server = SmtpServer.of(settings.smtp_url.get_secret_value())
            refused = server.send(content, [address.addr_spec for address in message["To"].addresses])
            told = f"{server} refused {refused}" if refused else f"sent, {server}"
    except (BillingError, OSError) as error:
        told = f"nobody was told: {error}"
    return told
