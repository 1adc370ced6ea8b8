"""The outbox: mails are kept before they are sent, and sent until somebody took them.

A mail goes from `pending` to `sent`; to `written`, a file, where there is no mail server; or to `refused`
when the server has said no to someone for days.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from email import message_from_bytes
from email.message import EmailMessage
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from billing.alone import alone
from billing.errors import MailError
from billing.ledger import insert, reading, writing
from billing.mail.policy import POLICY
from billing.mail.smtp import SmtpServer, SmtpSession
from billing.settings import BillingSettings
from billing.tables import mails
from tallybook.files import write_whole

# As long as mail servers try (RFC 5321, 4.5.4.1); what can't be handed over at all is tried for ever.
GIVE_UP_AFTER = timedelta(days=5)
State = Literal["pending", "written", "sent", "refused"]
KEPT = timedelta(days=30)  # what was delivered; then only that it was
_SILENCES = 2  # in a row, after which a server is left alone: each may take half a minute
_LOCK_KEY = 7_411_402_561  # not the ledger's: who holds it is the only one to deliver


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of one mail in one run. `error` is for people, and None when everybody took it."""

    mail_id: str
    day: date
    state: State
    place: str
    error: str | None = None


def enqueue(connection: Connection, mail_id: str, day: date, message: EmailMessage) -> bool:
    """Put a mail into the outbox, in the caller's transaction; false, and nothing done, when it was there."""
    row = {
        "id": mail_id,
        "day": day,
        "state": "pending",
        "message": message.as_bytes(policy=POLICY),
        "created_at": datetime.now(timezone.utc),
        "delivered_to": [],
    }
    statement = insert(connection, mails).values(**row).on_conflict_do_nothing(index_elements=["id"])
    return connection.scalar(statement.returning(mails.c.id)) is not None


def is_enqueued(connection: Connection, mail_id: str) -> bool:
    """Whether the outbox holds this mail, sent or not."""
    return connection.scalar(sa.select(mails.c.id).where(mails.c.id == mail_id)) is not None


def deliver(engine: Engine, settings: BillingSettings, now: datetime | None = None) -> list[Delivery]:
    """Hand over every pending mail, oldest first: by SMTP, or as files without an `smtp_url`.

    A mail is `sent` once everybody took it. Whoever took it is remembered and does not get it again;
    whoever did not is tried again by the next run. No transaction is open while a server is talked to,
    one mail at a time is in memory, and of several callers one delivers, the others wait. A crash between the
    hand-over and its record leaves the mail pending: the next run hands over the same bytes, with the same
    Message-ID. A server that can't be reached, or twice did not answer, is left alone until the next run.
    Raises: MailError: `smtp_url` is malformed. What goes wrong with one mail is told in its Delivery.
    """
    server = SmtpServer.of(settings.smtp_url.get_secret_value()) if settings.smtp_url else None
    now = now or datetime.now(timezone.utc)
    with alone(engine, _LOCK_KEY, "outbox"):
        _forget_old(engine, now)
        with reading(engine) as connection:
            pending = connection.execute(
                sa.select(mails.c.id, mails.c.day)
                .where(mails.c.state == "pending")
                .order_by(mails.c.created_at, mails.c.id)
            ).all()
        if server is None:
            return [_write(engine, mail_id, settings.outbox_dir, now) for mail_id, _ in pending]
        return _send_all(engine, [(row.id, row.day) for row in pending], server, now) if pending else []


def _write(engine: Engine, mail_id: str, folder: Path, now: datetime) -> Delivery:
    mail, place = _read(engine, mail_id), folder / file_name(mail_id)
    state: State = "written"
    error = None
    try:
        write_whole(place, mail.message)
    except OSError as failure:
        state, error = "pending", str(failure)
    return _recorded(engine, Delivery(mail_id, mail.day, state, str(place), error), mail.delivered_to, now)


def _send_all(
    engine: Engine, pending: Sequence[tuple[str, date]], server: SmtpServer, now: datetime
) -> list[Delivery]:
    done: list[Delivery] = []
    silences = 0
    session = SmtpSession(server)
    try:
        for mail_id, _ in pending:
            session.open(patience=silences < _SILENCES)
            done.append(_send(engine, mail_id, session, str(server), now))
            silences = 0 if session.is_open else silences + 1
    except MailError as away:
        left = [Delivery(i, day, "pending", str(server), str(away)) for i, day in pending[len(done) :]]
        with writing(engine) as connection:
            connection.execute(
                mails.update().where(mails.c.state == "pending", mails.c.last_error.is_(None))
                .values(last_error=str(away))
            )  # fmt: skip
        done += left
    finally:
        session.close()
    return done


def _send(engine: Engine, mail_id: str, session: SmtpSession, place: str, now: datetime) -> Delivery:
    mail = _read(engine, mail_id)
    took: list[str] = mail.delivered_to
    error = None
    state: State = "pending"
    try:
        recipients = [address for address in _recipients(mail.message) if address not in took]
        refused = session.send(mail.message, recipients)
        took = [*took, *(address for address in recipients if address not in refused)]
        if refused:
            error = "; ".join(f"{address} was refused: {reason}" for address, reason in refused.items())
            state = "refused" if now - mail.created_at > GIVE_UP_AFTER else "pending"
        else:
            state = "sent"
    except MailError as failure:
        error = str(failure)
    return _recorded(engine, Delivery(mail_id, mail.day, state, place, error), took, now)


def _read(engine: Engine, mail_id: str) -> sa.Row[Any]:
    with reading(engine) as connection:
        return connection.execute(sa.select(mails).where(mails.c.id == mail_id)).one()


def _recorded(engine: Engine, delivery: Delivery, took: list[str], now: datetime) -> Delivery:
    sent_at = now if delivery.state == "sent" else None
    with writing(engine) as connection:
        connection.execute(
            mails.update()
            .where(mails.c.id == delivery.mail_id)
            .values(state=delivery.state, delivered_to=took, sent_at=sent_at, last_error=delivery.error)
        )
    return delivery


def _forget_old(engine: Engine, now: datetime) -> None:
    """Keep of mails that were delivered a month ago that they were, and no longer what they said."""
    old = sa.and_(mails.c.state.in_(("sent", "written")), mails.c.created_at < now - KEPT)
    with writing(engine) as connection:
        connection.execute(mails.update().where(old, mails.c.message != b"").values(message=b""))


def _recipients(message: bytes) -> list[str]:
    to: Any = message_from_bytes(message, policy=POLICY)["To"]
    return list(dict.fromkeys(address.addr_spec for address in to.addresses))


def file_name(mail_id: str) -> str:
    """Another name for each mail, of characters that every file system takes."""
    safe = quote(mail_id, safe="@ ")
    if len(safe) > 200:
        safe = f"{safe[:160]}-{sha256(mail_id.encode()).hexdigest()[:32]}"
    return f"{safe}.eml"
