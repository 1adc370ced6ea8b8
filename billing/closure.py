"""Proof of closure: a day's events, aggregates and lines agree, to the token and to the last decimal."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import NamedTuple, NoReturn

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing.aggregates import day_sums
from billing.errors import ClosureError
from billing.money import charge
from billing.prices import Price, kept_prices
from billing.rating import UNRATED, Charge, Subject, Usage
from billing.tables import SUBJECT, bill_days, bill_lines, usage_events, usage_hours


@dataclass(frozen=True)
class Proof:
    """What was found equal for a bill: its events, their share of the aggregates, and its lines.

    `corrected_days` are earlier days that the bill corrects; their late events are counted here.
    """

    day: date
    requests: int
    event_tokens: int
    aggregate_tokens: int
    line_tokens: int
    unrated_tokens: int
    amount_minor: int
    currency: str | None
    corrected_days: tuple[date, ...]


def prove(connection: Connection, day: date) -> Proof:
    """Prove the bill of a day, for its own usage and for the earlier days that it corrects.

    The hourly aggregates of each of these days equal its events; the bill's lines equal the events that
    are on this bill; and all closed lines of a day at one price come to the price of their sum.
    Raises: ClosureError: the first difference found, named by day, subject and direction.
    """
    on_bill = usage_events.c.bill_day == day
    came_late = sa.select(usage_events.c.day).where(on_bill, usage_events.c.bill_day != usage_events.c.day)
    has_lines = sa.select(bill_lines.c.usage_day).where(bill_lines.c.day == day)
    corrected = sorted(set(connection.scalars(came_late.union(has_lines))) - {day})
    prices = kept_prices(connection)
    requests = event_tokens = aggregate_tokens = 0
    for usage_day in [*corrected, day]:
        all_events = _sums(connection, usage_events, usage_day)
        hours = _sums(connection, usage_hours, usage_day)
        _prove_equal(usage_day, all_events, hours)
        events = _sums(connection, usage_events, usage_day, on_bill)
        _prove_lines(connection, day, usage_day, events)
        _prove_amounts(connection, usage_day, prices)
        requests += sum(s.requests for s in events.values())
        tokens = sum(s.tokens for s in events.values())
        event_tokens += tokens
        # The hours hold the events of this bill and those of others: take the others' away.
        elsewhere = sum(s.tokens for s in all_events.values()) - tokens
        aggregate_tokens += sum(s.tokens for s in hours.values()) - elsewhere
    lines = connection.execute(sa.select(bill_lines).where(bill_lines.c.day == day)).all()
    return Proof(
        day=day,
        requests=requests,
        event_tokens=event_tokens,
        aggregate_tokens=aggregate_tokens,
        line_tokens=sum(line.quantity_tokens for line in lines),
        unrated_tokens=sum(line.quantity_tokens for line in lines if line.price_id == UNRATED),
        amount_minor=sum(line.amount_minor or 0 for line in lines),
        currency=next((line.currency for line in lines if line.currency), None),
        corrected_days=tuple(corrected),
    )


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


class _Sums(NamedTuple):
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __str__(self) -> str:
        return ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in self._asdict().items())


_NOTHING = _Sums(0, 0, 0, 0)


def _sums(
    connection: Connection, table: sa.Table, day: date, *where: sa.ColumnElement[bool]
) -> dict[Subject, _Sums]:
    rows = connection.execute(day_sums(table, day).where(*where)).mappings()
    return {Subject(*(r[n] for n in SUBJECT)): _Sums(*(r[n] for n in _Sums._fields)) for r in rows}


def _prove_equal(day: date, events: dict[Subject, _Sums], hours: dict[Subject, _Sums]) -> None:
    for subject in sorted(events.keys() | hours.keys()):
        told, kept = events.get(subject, _NOTHING), hours.get(subject, _NOTHING)
        if told != kept:
            _differ(day, subject, f"the events are {told}; the hourly aggregates are {kept}")


def _prove_lines(connection: Connection, day: date, usage_day: date, events: dict[Subject, _Sums]) -> None:
    """The lines of one bill for one day of usage hold the tokens of its events, in each direction."""
    columns = [bill_lines.c[name] for name in (*SUBJECT, "direction")]
    total = sa.cast(sa.func.sum(bill_lines.c.quantity_tokens), sa.BigInteger)
    query = sa.select(*columns, total).where(bill_lines.c.day == day, bill_lines.c.usage_day == usage_day)
    lines = {(Subject(*row[:-2]), row[-2]): row[-1] for row in connection.execute(query.group_by(*columns))}
    used = {
        (subject, direction): tokens
        for subject, sums in events.items()
        for direction, tokens in Usage(*sums[1:]).quantities().items()
    }
    for subject, direction in sorted(used.keys() | lines.keys()):
        told, billed = used.get((subject, direction), 0), lines.get((subject, direction), 0)
        if told != billed:
            _differ(usage_day, subject, f"the events are {told} {direction} tokens, the lines {billed}")


def _prove_amounts(connection: Connection, day: date, prices: dict[str, Price]) -> None:
    """All closed lines of a day at one price version come to the price of their sum."""
    for (subject, direction), by_price in sorted(billed_charges(connection, day).items()):
        for price_id, found in by_price.items():
            if price_id == UNRATED:
                continue
            price = prices.get(price_id)
            if price is None:
                _differ(day, subject, f"{direction} lines name the unknown price version {price_id}")
            terms = (price.of(direction), price.per_tokens, price.currency)
            if (found.unit_price, found.per_tokens, found.currency) != terms:
                _differ(day, subject, f"{direction} lines state other terms than price version {price_id}")
            owed = charge(found.quantity_tokens, *terms)
            if owed != found.amount_minor:
                _differ(
                    day,
                    subject,
                    f"{found.quantity_tokens} {direction} tokens cost {owed} {price.currency} minor units, "
                    f"the lines say {found.amount_minor}",
                )


def _differ(day: date, subject: Subject, what: str) -> NoReturn:
    whose = f"user {subject.user_id}, project {subject.project}, {subject.model} {subject.model_version}"
    raise ClosureError("closure_mismatch", f"{day}, {whose}: {what}")
