"""Bills: draft lines for a day, closed once they are proven; later finds become corrections."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date, datetime, timezone, tzinfo
from itertools import islice
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing import chain
from billing.aggregates import events_digest, hours_digest, prove_hours, roll_up, sum_hours
from billing.beside import beside
from billing.closure import Begun, Proof, prove
from billing.errors import DayError
from billing.ledger import insert, kept_facts, lock_ledger
from billing.line_writer import LineWriter
from billing.lines import Rater, make_lines
from billing.minimums import minimum_lines
from billing.month_totals import add_closed_lines, tokens_before
from billing.owing import CLOSED, owing_days, usage_to_bill
from billing.prices.tariff import Tariff
from billing.seals import seal
from billing.tables import bill_days, bill_lines, event_batches
from billing.wallets import charge_wallets
from tallybook.calendar import day_interval

_LINES_AT_ONCE = 5000


class Rated(NamedTuple):
    """How many lines a day has; `closed`: they are final, and rating has left them as they are."""

    lines: int
    closed: bool


@dataclass(frozen=True)
class Closing:
    """A closed day: how many lines it has, for how many days of usage, and the proof."""

    day: date
    lines: int
    proof: Proof
    newly_closed: bool


def rate_day(connection: Connection, day: date, tariff: Tariff) -> Rated:
    """Make the draft lines of a day anew from the aggregates.

    The lines bill the day's own usage, and what closed days before it still owe: events that came late,
    and tokens that were unrated until now. A closed day is left as it is. Memory holds the lines of some
    thousand users at a time.
    """
    lock_ledger(connection)
    if _state(connection, day) == "closed":
        return Rated(_count_lines(connection, day), closed=True)
    roll_up(connection)
    return Rated(len(_draft(connection, day, tariff, sum_hours(connection, day))), closed=False)


def _draft(connection: Connection, day: date, tariff: Tariff, usage: sa.Table) -> list[bytes]:
    """The leaf hashes of the lines: see `billing.seals`."""
    connection.execute(bill_lines.delete().where(bill_lines.c.day == day))
    connection.execute(
        insert(connection, bill_days).values(day=day, state="draft", early=False).on_conflict_do_nothing()
    )
    _take_corrections(connection, day)
    drafted: list[date] = []
    writer = LineWriter(connection)
    for usage_day in [*owing_days(connection, day, tariff.price_list), day]:
        rater = Rater(tariff, usage_day)
        for usages in usage_to_bill(connection, usage_day, usage if usage_day == day else None):
            users = (usages[0].user_id, usages[-1].user_id)
            before = tokens_before(connection, day, usage_day, drafted, users)
            with writer.behind():
                writer.add(make_lines(day, usage_day, rater, usages, before))
        writer.flush()
        # Not all at once as they come: they are read while nothing is being copied.
        topped_up = minimum_lines(connection, day, usage_day, tariff, rater)
        while some := list(islice(topped_up, _LINES_AT_ONCE)):
            writer.add(some)
            writer.flush()
        drafted.append(usage_day)
    return writer.leaves


def _take_corrections(connection: Connection, day: date) -> None:
    """Leave other drafts only their own days: what earlier days owe is on one draft, the latest made."""
    drafts = sa.select(bill_days.c.day).where(bill_days.c.state == "draft", bill_days.c.day != day)
    for other in connection.scalars(drafts).all():
        connection.execute(
            bill_lines.delete().where(bill_lines.c.day == other, bill_lines.c.usage_day < other)
        )


def close_day(
    connection: Connection,
    day: date,
    tariff: Tariff,
    zone: tzinfo,
    *,
    early: bool = False,
    closed_with: date | None = None,
    now: datetime | None = None,
) -> Closing:
    """Close a day for ever, if events = aggregates = lines to the token and to the last decimal.

    Rates it anew first, so that what is proven is what is closed, marks what came late for earlier days as
    being on this bill, charges it to wallets, and seals it in the audit chain. A closed day is proven again
    and left as it is. With `early`, a day may be closed before it is over: what it still brings becomes
    corrections on the next bill. `closed_with` notes the later day whose closing caught up with this one.
    Raises: DayError: the day is not over (code day_not_over) or has not begun (day_in_future).
        ClosureError: a mismatch; the caller's transaction must be rolled back.
    """
    now = now or datetime.now(timezone.utc)
    lock_ledger(connection)
    if _state(connection, day) == "closed":
        return Closing(day, _count_lines(connection, day), prove(connection, day), newly_closed=False)
    interval = day_interval(day, zone)
    check_closable(day, zone, early=early, now=now)
    rolled_up = roll_up(connection)
    with _hours_proven(connection, day, begin=not rolled_up) as hours_proven:
        usage = sum_hours(connection, day)
        leaves = _draft(connection, day, tariff, usage)
        came_late = sa.and_(event_batches.c.bill_day.is_(None), event_batches.c.day < day)
        connection.execute(event_batches.update().where(came_late).values(bill_day=day))
        connection.execute(
            bill_days.update()
            .where(bill_days.c.day == day)
            .values(state="closed", early=interval.end > now, closed_at=now, closed_with=closed_with)
        )
        add_closed_lines(connection, day)
        charge_wallets(connection, day, now)
        sealed = seal(connection, day, leaves)
        proof = prove(connection, day, Begun(usage, hours_proven))
    facts = {
        "early": interval.end > now,
        "closed_at": now.astimezone(timezone.utc).isoformat(),
        "closed_with": closed_with and closed_with.isoformat(),
        "proof": asdict(proof),
        "facts": kept_facts(connection),
    }
    chain.append(connection, "close", asdict(sealed) | facts, now)
    return Closing(day, sealed.lines, proof, newly_closed=True)


@contextmanager
def _hours_proven(connection: Connection, day: date, *, begin: bool) -> Iterator[Callable[[], None]]:
    """Prove a day's hours, beside this transaction if that may `begin` now: if it has not changed them.

    Beside it only the events are summed. Their sums must be those that `sum_hours` has got; where they are
    not, or nobody can tell, the whole proof is asked, which finds and names the difference.
    """
    if not begin:
        yield lambda: prove_hours(connection, day)
        return
    with beside(connection, lambda other: events_digest(other, day)) as events:

        def proven() -> None:
            if events() != hours_digest(connection):
                prove_hours(connection, day)

        yield proven


def check_begun(day: date, zone: tzinfo, now: datetime | None = None) -> None:
    """Raises: DayError: the day has not begun (code day_in_future)."""
    if day_interval(day, zone).start > (now or datetime.now(timezone.utc)):
        raise DayError("day_in_future", f"{day} has not begun")


def check_closable(day: date, zone: tzinfo, *, early: bool, now: datetime | None = None) -> None:
    """Raises: DayError: the day has not begun (code day_in_future), or is not over (day_not_over)."""
    check_begun(day, zone, now)
    if day_interval(day, zone).end > (now or datetime.now(timezone.utc)) and not early:
        raise DayError("day_not_over", f"{day} is not over; bill it tomorrow, or close it early on purpose")


def days_to_catch_up(
    connection: Connection, day: date, zone: tzinfo, now: datetime | None = None
) -> list[date]:
    """Days before this one that have usage, are over, and are not closed: nobody ran their billing."""
    used = sa.select(event_batches.c.day).where(event_batches.c.day < day, event_batches.c.day.not_in(CLOSED))
    moment = now or datetime.now(timezone.utc)
    return sorted(d for d in set(connection.scalars(used.distinct())) if day_interval(d, zone).end <= moment)


def _state(connection: Connection, day: date) -> str | None:
    return connection.scalar(sa.select(bill_days.c.state).where(bill_days.c.day == day))


def _count_lines(connection: Connection, day: date) -> int:
    count = sa.select(sa.func.count()).select_from(bill_lines).where(bill_lines.c.day == day)
    return connection.execute(count).scalar_one()
