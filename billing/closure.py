"""Proof of closure: a day's events, aggregates and lines agree, to the token and to the last decimal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import NoReturn

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing.aggregates import day_sums
from billing.errors import ClosureError
from billing.ledger import COUNTS, SUBJECT, bill_days, bill_lines, usage_events, usage_hours
from billing.money import charge
from billing.prices import Price, kept_prices
from billing.rating import UNRATED, Charge, Subject, Usage


@dataclass(frozen=True)
class Proof:
    """What was found equal for a day: its events, its hourly aggregates and its lines.

    Lines are those of every closed bill for the day's usage; an amount may be spread over several of them.
    """

    day: date
    requests: int
    event_tokens: int
    aggregate_tokens: int
    line_tokens: int
    unrated_tokens: int
    amount_minor: int
    currency: str | None
    corrected_days: tuple[date, ...] = ()


def prove(connection: Connection, day: date) -> Proof:
    """Prove a closed day, and every earlier day that its bill corrects.

    Raises: ClosureError: the first difference found, named by day, subject and direction.
    """
    on_bill = sa.select(bill_lines.c.usage_day).where(bill_lines.c.day == day).distinct()
    corrected = sorted(d for d in connection.scalars(on_bill) if d != day)
    prices = kept_prices(connection)
    for earlier in corrected:
        _prove_usage(connection, earlier, prices, ())
    return _prove_usage(connection, day, prices, tuple(corrected))


def usage_by_subject(connection: Connection, table: sa.Table, day: date) -> Iterator[tuple[Subject, Usage]]:
    """Token sums of a day by subject, from `usage_hours` or `usage_events`."""
    for row in connection.execute(day_sums(table, day)).mappings():
        yield Subject(*(row[name] for name in SUBJECT)), Usage(*(row[name] for name in COUNTS))


def billed_charges(connection: Connection, usage_day: date) -> dict[tuple[Subject, str], dict[str, Charge]]:
    """What closed bills hold for a day of usage: summed by subject and direction, then by price version.

    A direction without lines reads as an empty dict.
    """
    subject = [bill_lines.c[name] for name in SUBJECT]
    terms = (bill_lines.c.unit_price, bill_lines.c.per_tokens, bill_lines.c.currency)
    query = (
        sa.select(
            *subject,
            bill_lines.c.direction,
            bill_lines.c.price_id,
            *terms,
            sa.cast(sa.func.sum(bill_lines.c.quantity_tokens), sa.BigInteger).label("quantity_tokens"),
            sa.cast(sa.func.sum(bill_lines.c.amount_minor), sa.BigInteger).label("amount_minor"),
        )
        .join_from(bill_lines, bill_days)
        .where(bill_lines.c.usage_day == usage_day, bill_days.c.state == "closed")
        .group_by(*subject, bill_lines.c.direction, bill_lines.c.price_id, *terms)
    )
    found: dict[tuple[Subject, str], dict[str, Charge]] = defaultdict(dict)
    for row in connection.execute(query):
        by_price = found[Subject(*row[: len(SUBJECT)]), row.direction]
        if row.price_id in by_price:
            raise ClosureError(
                "closure_mismatch",
                f"{usage_day}: lines of {row.user_id} give price version {row.price_id} two sets of terms",
            )
        by_price[row.price_id] = Charge(
            row.price_id,
            row.quantity_tokens,
            None if row.unit_price is None else Decimal(row.unit_price),
            row.per_tokens,
            row.currency,
            row.amount_minor,
        )
    return found


def _prove_usage(
    connection: Connection, day: date, prices: dict[str, Price], corrected: tuple[date, ...]
) -> Proof:
    events = dict(usage_by_subject(connection, usage_events, day))
    hours = dict(usage_by_subject(connection, usage_hours, day))
    for subject in sorted(events.keys() | hours.keys()):
        if events.get(subject) != hours.get(subject):
            _differ(day, subject, f"events say {events.get(subject)}, hourly aggregates {hours.get(subject)}")
    requests = {t: _requests(connection, t, day) for t in (usage_events, usage_hours)}
    if requests[usage_events] != requests[usage_hours]:
        raise ClosureError(
            "closure_mismatch",
            f"{day}: {requests[usage_events]} events, but {requests[usage_hours]} requests in the hours",
        )
    lines = billed_charges(connection, day)
    used = {
        (subject, direction): tokens
        for subject, usage in events.items()
        for direction, tokens in usage.quantities().items()
        if tokens
    }
    for subject, direction in sorted(used.keys() | lines.keys()):
        charges = lines[subject, direction]
        billed = sum(c.quantity_tokens for c in charges.values())
        if billed != used.get((subject, direction), 0):
            told = used.get((subject, direction), 0)
            _differ(day, subject, f"events say {told} {direction} tokens, lines {billed}")
        for found in charges.values():
            _prove_amount(day, subject, direction, found, prices)
    everything = [c for by_price in lines.values() for c in by_price.values()]
    currencies = {c.currency for c in everything if c.currency}
    return Proof(
        day=day,
        requests=requests[usage_events],
        event_tokens=sum(u.prompt_tokens + u.completion_tokens for u in events.values()),
        aggregate_tokens=sum(u.prompt_tokens + u.completion_tokens for u in hours.values()),
        line_tokens=sum(c.quantity_tokens for c in everything),
        unrated_tokens=sum(c.quantity_tokens for c in everything if c.price_id == UNRATED),
        amount_minor=sum(c.amount_minor or 0 for c in everything),
        currency=currencies.pop() if currencies else None,
        corrected_days=corrected,
    )


def _prove_amount(
    day: date, subject: Subject, direction: str, found: Charge, prices: dict[str, Price]
) -> None:
    """The lines of one price version sum to the price of their sum."""
    if found.price_id == UNRATED:
        return
    price = prices.get(found.price_id)
    if price is None:
        _differ(day, subject, f"{direction} lines name the unknown price version {found.price_id}")
    if (found.unit_price, found.per_tokens, found.currency) != (
        price.of(direction),
        price.per_tokens,
        price.currency,
    ):
        _differ(day, subject, f"{direction} lines state other terms than price version {found.price_id}")
    owed = charge(found.quantity_tokens, price.of(direction), price.per_tokens, price.currency)
    if owed != found.amount_minor:
        _differ(
            day,
            subject,
            f"{found.quantity_tokens} {direction} tokens cost {owed} {price.currency} minor units, "
            f"lines say {found.amount_minor}",
        )


def _requests(connection: Connection, table: sa.Table, day: date) -> int:
    counted = sa.func.count() if table is usage_events else sa.func.sum(table.c.requests)
    return int(connection.scalar(sa.select(counted).select_from(table).where(table.c.day == day)) or 0)


def _differ(day: date, subject: Subject, what: str) -> NoReturn:
    whose = f"user {subject.user_id}, project {subject.project}, {subject.model} {subject.model_version}"
    raise ClosureError("closure_mismatch", f"{day}, {whose}: {what}; nothing was closed and nothing mailed")
