"""Bills: draft lines for a day, closed once they are proven; later finds become corrections."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from datetime import date, datetime, timezone, tzinfo
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing import chain
from billing.aggregates import day_sums
from billing.closure import Proof, billed_charges, prove
from billing.errors import DayError
from billing.ledger import insert, lock_ledger
from billing.prices import PriceList, kept_prices
from billing.rating import UNRATED, Charge, Subject, Usage, difference, rate
from billing.tables import COUNTS, SUBJECT, bill_days, bill_lines, usage_events, usage_hours
from tallybook.calendar import day_interval

_CLOSED = sa.select(bill_days.c.day).where(bill_days.c.state == "closed")


@dataclass(frozen=True)
class Closing:
    """A closed day: how many lines it has, for how many days of usage, and the proof."""

    day: date
    lines: int
    proof: Proof
    newly_closed: bool


def rate_day(connection: Connection, day: date, prices: PriceList) -> int:
    """Make the draft lines of a day anew from the aggregates; how many there are.

    The lines bill the day's own usage, and what closed days before it still owe: events that came late,
    and tokens that were unrated until now. A closed day is left as it is.
    """
    lock_ledger(connection)
    if _state(connection, day) == "closed":
        return _count_lines(connection, day)
    connection.execute(bill_lines.delete().where(bill_lines.c.day == day))
    connection.execute(
        insert(connection, bill_days).values(day=day, state="draft", early=False).on_conflict_do_nothing()
    )
    rows = []
    for usage_day in [day, *_owing_days(connection, day)]:
        rows += _lines_still_owed(connection, usage_day, prices)
    for start in range(0, len(rows), 1000):
        connection.execute(bill_lines.insert(), [{"day": day, **row} for row in rows[start : start + 1000]])
    return len(rows)


def close_day(
    connection: Connection,
    day: date,
    prices: PriceList,
    zone: tzinfo,
    *,
    early: bool = False,
    closed_with: date | None = None,
    now: datetime | None = None,
) -> Closing:
    """Close a day for ever, if events = aggregates = lines to the token and to the last decimal.

    Rates it anew first, so that what is proven is what is closed, marks what came late for earlier days as
    being on this bill, and seals the bill in the audit chain. A closed day is proven again and left as it
    is. With `early`, a day may be closed before it is over: what it still brings becomes corrections on
    the next bill. `closed_with` notes the later day whose closing caught up with this one.
    Raises: DayError: the day is not over (code day_not_over) or has not begun (day_in_future).
        ClosureError: a mismatch; the caller's transaction must be rolled back.
    """
    now = now or datetime.now(timezone.utc)
    lock_ledger(connection)
    already = _state(connection, day) == "closed"
    if not already:
        interval = day_interval(day, zone)
        check_begun(day, zone, now)
        if interval.end > now and not early:
            raise DayError(
                "day_not_over", f"{day} is not over; bill it tomorrow, or close it early on purpose"
            )
        rate_day(connection, day, prices)
        connection.execute(
            usage_events.update()
            .where(
                usage_events.c.bill_day.is_(None),
                usage_events.c.day < day,  # came late, and is billed now
            )
            .values(bill_day=day)
        )
        connection.execute(
            bill_days.update()
            .where(bill_days.c.day == day)
            .values(state="closed", early=interval.end > now, closed_at=now, closed_with=closed_with)
        )
    proof = prove(connection, day)
    if not already:
        facts = {"early": interval.end > now, "proof": asdict(proof)}
        chain.append(connection, "close", asdict(chain.seal(connection, day)) | facts, now)
    return Closing(day, _count_lines(connection, day), proof, newly_closed=not already)


def check_begun(day: date, zone: tzinfo, now: datetime | None = None) -> None:
    """Raises: DayError: the day has not begun (code day_in_future)."""
    if day_interval(day, zone).start > (now or datetime.now(timezone.utc)):
        raise DayError("day_in_future", f"{day} has not begun")


def days_to_catch_up(
    connection: Connection, day: date, zone: tzinfo, now: datetime | None = None
) -> list[date]:
    """Days before this one that have usage, are over, and are not closed: nobody ran their billing."""
    used = sa.select(usage_hours.c.day).where(usage_hours.c.day < day, usage_hours.c.day.not_in(_CLOSED))
    moment = now or datetime.now(timezone.utc)
    return sorted(d for d in set(connection.scalars(used)) if day_interval(d, zone).end <= moment)


def _owing_days(connection: Connection, day: date) -> list[date]:
    """Closed days before `day` whose usage and closed lines differ, or that hold unrated tokens."""
    tokens = usage_hours.c.prompt_tokens + usage_hours.c.completion_tokens
    used = dict(
        connection.execute(
            sa.select(usage_hours.c.day, sa.func.sum(tokens))
            .where(usage_hours.c.day < day, usage_hours.c.day.in_(_CLOSED))
            .group_by(usage_hours.c.day)
        ).all()
    )
    rated = sa.case((bill_lines.c.price_id == UNRATED, 0), else_=bill_lines.c.quantity_tokens)
    billed = dict(
        connection.execute(
            sa.select(bill_lines.c.usage_day, sa.func.sum(rated))
            .where(bill_lines.c.usage_day < day, bill_lines.c.day.in_(_CLOSED))
            .group_by(bill_lines.c.usage_day)
        ).all()
    )
    return sorted(d for d in used.keys() | billed.keys() if used.get(d, 0) != billed.get(d, 0))


def _lines_still_owed(connection: Connection, usage_day: date, prices: PriceList) -> list[dict[str, Any]]:
    """Lines for what is used and not yet on closed bills, of one day of usage."""
    billed = billed_charges(connection, usage_day)
    kept = kept_prices(connection)
    owed: dict[tuple[Subject, str], Charge] = {}
    for row in connection.execute(day_sums(usage_hours, usage_day)).mappings():
        subject, usage = Subject(*(row[n] for n in SUBJECT)), Usage(*(row[n] for n in COUNTS))
        listed = prices.in_force(subject.model, subject.model_version, usage_day)
        for direction, quantity in usage.quantities().items():
            if quantity:
                # What closed lines rated once stays at their price: a price never changes the past.
                rated_at = [id_ for id_, c in billed[subject, direction].items() if id_ and c.quantity_tokens]
                price = kept[rated_at[0]] if rated_at else listed
                owed[subject, direction] = rate(direction, quantity, price)
    rows = []
    for subject, direction in sorted(owed.keys() | billed.keys()):
        now = owed.get((subject, direction))
        before = billed[subject, direction]
        for price_id in sorted(before.keys() | ({now.price_id} if now else set())):
            still = now if now and now.price_id == price_id else None
            rest = difference(still, before.get(price_id))
            if rest is not None:
                rows.append(
                    {"usage_day": usage_day, **subject._asdict(), "direction": direction, **_terms(rest)}
                )
    return rows


def _terms(charge: Charge) -> dict[str, Any]:
    terms = {f.name: getattr(charge, f.name) for f in fields(charge)}
    terms["unit_price"] = None if charge.unit_price is None else str(charge.unit_price)
    return terms


def _state(connection: Connection, day: date) -> str | None:
    return connection.scalar(sa.select(bill_days.c.state).where(bill_days.c.day == day))


def _count_lines(connection: Connection, day: date) -> int:
    count = sa.select(sa.func.count()).select_from(bill_lines).where(bill_lines.c.day == day)
    return connection.execute(count).scalar_one()
