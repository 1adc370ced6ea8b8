"""The outbox of alerts: what changed is kept with its episode, and sent until each channel has it.

A notification goes from `waiting` to `sending` to `sent`. Whoever finds one `sending` knows that a program
died in the midst, or that no answer came: it is sent again, under the same id, and says so.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from datetime import time as clock
from typing import Any, NamedTuple

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from billing.alerts import texts
from billing.alerts.episodes import Changed
from billing.alerts.mail import alert_mail
from billing.alerts.robots import Message, Robot, robot_of
from billing.alerts.rules import URGENT
from billing.alerts.tables import alert_episodes, notifications
from billing.alone import alone
from billing.errors import NotifyError
from billing.ledger import insert, reading, writing
from billing.mail import outbox
from billing.settings import BillingSettings
from billing.simulation.mark import is_simulated
from tallybook.calendar import ONE_DAY
from tallybook.usage import new_event_id

GIVE_UP_AFTER = timedelta(days=3)  # an alert that is older helps nobody
_LOCK_KEY = 7_411_402_559
_LONGEST_PAUSE = timedelta(hours=1)
_MAIL = "mailto:"


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of one message: `error` is None when the channel has it."""

    channel: str
    changes: int
    error: str | None = None


class _Waiting(NamedTuple):
    """A message to be sent to a channel; `again`: it may have been sent before."""

    channel: str
    message_id: str
    again: bool


def put_out(
    connection: Connection, settings: BillingSettings, changes: Iterable[Changed], now: datetime
) -> None:
    """Keep what has changed for every channel, in the transaction that changed it."""
    quiet_until = end_of_quiet(settings, now)
    for changed in changes:
        episode = changed.episode
        urgent = episode.rule in URGENT
        for channel in settings.alert_channels:
            row = {
                "id": f"{episode.id}-{changed.change}-{episode.level}-{channel}",
                "channel": channel,
                "episode_id": episode.id,
                "change": changed.change,
                "facts": orjson.dumps(episode.facts).decode(),
                "urgent": urgent,
                "state": "waiting",
                "created_at": now,
                "tries": 0,
                "next_try_at": now if urgent or quiet_until is None else quiet_until,
            }
            connection.execute(insert(connection, notifications).values(**row).on_conflict_do_nothing())


def deliver(
    engine: Engine,
    settings: BillingSettings,
    now: datetime | None = None,
    *,
    tries: int = 3,
    pause_seconds: float = 1.0,
) -> list[Sent]:
    """Send what waits: to each channel one message, which lists every change that is due.

    No transaction is open while a channel is talked to, and of several callers one sends at a time. What a
    channel does not take is tried again, after longer and longer pauses, by this run and the ones after.
    """
    moment = now or datetime.now(timezone.utc)
    sent: list[Sent] = []
    mailed = False
    with alone(engine, _LOCK_KEY, "alerts"):
        for channel, secret in settings.alert_channels.items():
            address = secret.get_secret_value()
            for message_id, again in _claim(engine, channel, moment):
                if address.startswith(_MAIL):
                    sent.append(_by_mail(engine, settings, channel, address, message_id, moment))
                    mailed = True
                    continue
                robot = robot_of(address)
                if robot is None:  # settings have checked it
                    raise NotifyError("channel_invalid", f"alert_channels: {channel} is no address")
                waiting = _Waiting(channel, message_id, again)
                sent.append(_by_robot(engine, settings, waiting, robot, moment, tries, pause_seconds))
    if mailed:
        mails = [m for m in outbox.deliver(engine, settings, now) if m.mail_id.startswith("alert-")]
        sent += [Sent(mail.place, 0, mail.error) for mail in mails if mail.error is not None]
    return sent


def end_of_quiet(settings: BillingSettings, now: datetime) -> datetime | None:
    """When the quiet hours end that it is in, by the clock of the billing time zone; None: it is in none."""
    if settings.alert_quiet_hours is None:
        return None
    start, end = (clock.fromisoformat(each) for each in settings.alert_quiet_hours.split("-"))
    local = now.astimezone(settings.zone)
    at = local.time().replace(tzinfo=None)
    quiet = start <= at < end if start < end else at >= start or at < end
    if not quiet:
        return None
    day = local.date() + (ONE_DAY if at >= end else timedelta(0))
    return datetime.combine(day, end, tzinfo=settings.zone).astimezone(timezone.utc)


def _claim(engine: Engine, channel: str, now: datetime) -> list[tuple[str, bool]]:
    """Put what is due into messages: their ids, and whether they may have been sent before."""
    due = sa.and_(notifications.c.channel == channel, notifications.c.next_try_at <= now)
    with writing(engine) as connection:
        cut_off = sa.select(notifications.c.message_id).where(due, notifications.c.state == "sending")
        again = sorted(set(connection.scalars(cut_off)))
        fresh = new_event_id()
        claimed = connection.execute(
            notifications.update()
            .where(due, notifications.c.state == "waiting")
            .values(state="sending", message_id=fresh)
        )
    return [*((message_id, True) for message_id in again), *([(fresh, False)] if claimed.rowcount else [])]


def _rows(connection: Connection, message_id: str) -> Sequence[sa.Row[Any]]:
    episode = alert_episodes.c
    return connection.execute(
        sa.select(notifications, episode.rule, episode.kind, episode.subject, episode.level)
        .join_from(notifications, alert_episodes)
        .where(notifications.c.message_id == message_id)
        .order_by(notifications.c.created_at, notifications.c.episode_id, notifications.c.id)
    ).all()


def compose(connection: Connection, settings: BillingSettings, message_id: str, *, again: bool) -> Message:
    """The message of the notifications that were put together under this id."""
    language, rows = settings.mail_language, _rows(connection, message_id)
    said = [
        texts.changed(
            language,
            row.change,
            texts.sentence(language, row.rule, row.kind, row.subject, orjson.loads(row.facts)),
        )
        for row in rows
    ]
    simulated = is_simulated(connection)
    head = [(texts.HEAD_ONE if len(said) == 1 else texts.HEADS)[language].format(count=f"{len(said):,}")]
    head += [texts.SIMULATED[language]] if simulated else []
    head += [texts.AGAIN[language]] if again else []
    told = [
        {
            "change": row.change, "episode": row.episode_id, "rule": row.rule, "kind": row.kind,
            "subject": row.subject, "facts": orjson.loads(row.facts), "text": text,
        }
        for row, text in zip(rows, said, strict=True)
    ]  # fmt: skip
    data = {"simulated": simulated, "alerts": told}
    return Message(message_id, tuple(head), tuple(said), texts.MORE[language], data)


def _by_mail(
    engine: Engine, settings: BillingSettings, channel: str, address: str, message_id: str, now: datetime
) -> Sent:
    """Hand it over to the outbox of mails, in one transaction: neither lost nor repeated."""
    with writing(engine) as connection:
        message = compose(connection, settings, message_id, again=False)
        mail = alert_mail(message, settings, address.removeprefix(_MAIL).split(","), now)
        day = now.astimezone(settings.zone).date()
        outbox.enqueue(connection, f"alert-{channel}-{message_id}", day, mail)
        changes = _mark(connection, message_id, state="sent", sent_at=now, last_error=None)
    return Sent(channel, changes)


def _by_robot(
    engine: Engine,
    settings: BillingSettings,
    waiting: _Waiting,
    robot: Robot,
    now: datetime,
    tries: int,
    pause_seconds: float,
) -> Sent:
    channel, message_id, again = waiting
    error: NotifyError | None = None
    for number in range(tries):
        if number:
            time.sleep(pause_seconds * 2 ** (number - 1))
        with reading(engine) as connection:
            message = compose(connection, settings, message_id, again=again)
        try:
            robot.send(message, time.time())
        except NotifyError as failure:
            error, again = failure, again or failure.code == "notify_uncertain"
            continue
        with writing(engine) as connection:
            return Sent(channel, _mark(connection, message_id, state="sent", sent_at=now, last_error=None))
    with writing(engine) as connection:
        ours = notifications.c.message_id == message_id
        tried = connection.execute(sa.select(sa.func.max(notifications.c.tries)).where(ours)).scalar_one()
        later = min(timedelta(minutes=2) * 2 ** min(tried, 10), _LONGEST_PAUSE)
        # Each by its own age: what is too old must not take with it what is told beside it.
        gone = notifications.c.created_at < now - GIVE_UP_AFTER
        state = sa.case((gone, "given_up"), else_="sending" if again else "waiting")
        told = str(error)
        changes = _mark(connection, message_id, state=state, next_try_at=now + later, last_error=told)
    return Sent(channel, changes, told)


def _mark(connection: Connection, message_id: str, **values: Any) -> int:
    """Note what became of a message; how many changes it has."""
    marked = connection.execute(
        notifications.update()
        .where(notifications.c.message_id == message_id)
        .values(tries=notifications.c.tries + 1, **values)
    )
    return marked.rowcount
