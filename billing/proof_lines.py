"""Proof that lines hold what was used, at the terms in force: one pass over both, user by user."""

from __future__ import annotations

from datetime import date
from typing import Any, NamedTuple, NoReturn

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing.aggregates import KEY, whole
from billing.bulk import stream
from billing.errors import ClosureError
from billing.lines import Rater
from billing.money import ExactPrice, charge
from billing.owing import CLOSED, waiting_batches
from billing.rating import DIRECTIONS, MINIMUM, UNRATED, Subject, quantities
from billing.tables import COUNTS, bill_lines, event_batches, usage_events, usage_hours

_TERMS = ("direction", "price_id", "tier", "discount_percent", "unit_price", "per_tokens", "currency")
_NUMBERS = ("quantity_tokens", "tokens_before", "amount_minor")
_NUMBER_OF = {direction: number for number, direction in enumerate(DIRECTIONS)}
_PAYER = 2  # user and project come first, then what decides the price
_KEY_END = len(KEY)
_TERMS_END = _KEY_END + len(_TERMS)
_NUMBERS_END = _TERMS_END + len(_NUMBERS)


class _Terms(NamedTuple):
    """What a line says of its price."""

    direction: str
    price_id: str
    tier: int
    discount_percent: str
    unit_price: str
    per_tokens: int | None
    currency: str


def prove_own_lines(connection: Connection, day: date, rater: Rater, usage: sa.Table | None = None) -> None:
    """Prove that all closed lines for a day of usage, on whatever bill, hold its hours.

    Events that came late and are on no bill yet are left out of the hours. `usage`: their sums, where this
    transaction has made them (`billing.aggregates.sum_hours`).
    Raises: ClosureError: the first difference.
    """
    hours = _counts(usage_hours, usage_hours.c.day == day) if usage is None else _counts(usage)
    rolled_up = waiting_batches(day).where(event_batches.c.rolled_up)
    waiting = _counts(
        usage_events, usage_events.c.day == day, usage_events.c.batch_id.in_(rolled_up), sign=-1
    )
    lines = sa.and_(bill_lines.c.usage_day == day, bill_lines.c.day.in_(CLOSED))
    _prove(connection, day, rater, [hours, waiting], lines)


def prove_corrections(connection: Connection, day: date, usage_day: date, rater: Rater) -> None:
    """Prove that the lines of a bill for an earlier day hold the events that came late for it.

    Raises: ClosureError: the first difference.
    """
    batches = sa.select(event_batches.c.id).where(
        event_batches.c.day == usage_day, event_batches.c.bill_day == day
    )
    late = _counts(usage_events, usage_events.c.day == usage_day, usage_events.c.batch_id.in_(batches))
    lines = sa.and_(bill_lines.c.day == day, bill_lines.c.usage_day == usage_day)
    _prove(connection, usage_day, rater, [late], lines)


def differ(day: date, subject: Subject, what: str) -> NoReturn:
    """Raise the difference that was found."""
    whose = f"user {subject.user_id}, project {subject.project}, {subject.model} {subject.model_version}"
    raise ClosureError("closure_mismatch", f"{day}, {whose}: {what}")


def _counts(table: sa.Table, *where: sa.ColumnElement[bool], sign: int = 1) -> sa.Select[Any]:
    """Token sums by subject, beside which the columns of lines are null."""
    keys = [table.c[name] for name in KEY]
    counts = [(sign * whole(sa.func.sum(table.c[name]))).label(name) for name in COUNTS]
    blank = [sa.cast(sa.null(), bill_lines.c[name].type).label(name) for name in (*_TERMS, *_NUMBERS)]
    return sa.select(*keys, *blank, *counts).where(*where).group_by(*keys)


def _prove(
    connection: Connection,
    usage_day: date,
    rater: Rater,
    used: list[sa.Select[Any]],
    which: sa.ColumnElement[bool],
) -> None:
    columns = [bill_lines.c[name] for name in (*KEY, *_TERMS, *_NUMBERS)]
    no_counts = [sa.literal(0, sa.BigInteger).label(name) for name in COUNTS]
    query = sa.union_all(*used, sa.select(*columns, *no_counts).where(which)).order_by("user_id")
    prices: dict[tuple[Any, ...], ExactPrice] = {}
    user = None
    left: dict[
        tuple[Any, ...], list[int]
    ] = {}  # of this user: tokens used, less those on lines, by direction
    for row in stream(connection, query, ahead=True):
        if row[0] != user:
            _prove_nothing_left(usage_day, left)
            user, left = row[0], {}
        subject, direction = row[:_KEY_END], row[_KEY_END]
        if direction is None:
            subject = rater.subject(subject)
        so_far = left.get(subject)
        if so_far is None:
            so_far = left[subject] = [0, 0, 0]
        if direction is None:
            for number, tokens in enumerate(quantities(*row[_NUMBERS_END:])):
                so_far[number] += tokens
            continue
        tokens, before, amount = row[_TERMS_END:_NUMBERS_END]
        if direction in _NUMBER_OF:
            so_far[_NUMBER_OF[direction]] -= tokens
        elif direction != MINIMUM:
            differ(usage_day, Subject(*subject), f"there are no {direction} lines")
        if row[_KEY_END + 1] == UNRATED:
            continue
        said = row[_PAYER:_TERMS_END]
        price = prices.get(said)
        if price is None:
            terms = _Terms(*row[_KEY_END:_TERMS_END])
            price = prices[said] = _price_of_line(usage_day, rater, Subject(*subject), terms)
        if direction == MINIMUM:
            continue
        owed = charge(before + tokens, price) - (charge(before, price) if before else 0)
        if amount != owed:
            what = f"{tokens} {direction} tokens after {before} cost {owed} minor units"
            differ(usage_day, Subject(*subject), f"{what}, the lines say {amount}")
    _prove_nothing_left(usage_day, left)


def _prove_nothing_left(usage_day: date, left: dict[tuple[Any, ...], list[int]]) -> None:
    for subject, differences in left.items():
        if any(differences):
            tokens, direction = next((t, d) for t, d in zip(differences, DIRECTIONS, strict=True) if t)
            what = f"the usage is {tokens:+} {direction} tokens against the lines"
            differ(usage_day, Subject(*subject), what)


def _price_of_line(usage_day: date, rater: Rater, subject: Subject, said: _Terms) -> ExactPrice:
    """What a token costs on lines that say this; they must say what is in force."""
    minimum = said.direction == MINIMUM
    whose = f"{said.direction} lines are at price version {said.price_id} less {said.discount_percent}%"
    found = rater.terms(subject)
    if found is None:
        differ(usage_day, subject, f"{whose}, none is in force")
    terms = found[0 if minimum else DIRECTIONS.index(said.direction)]
    if (said.price_id, said.discount_percent) != (terms.price_id, terms.discount):
        differ(usage_day, subject, f"{whose}, in force is {terms.price_id} less {terms.discount}%")
    unit_prices = (str(terms.price.minimum),) if minimum else terms.unit_prices
    if said.tier >= len(unit_prices) or said[-3:] != (
        unit_prices[said.tier],
        None if minimum else terms.price.per_tokens,
        terms.price.currency,
    ):
        differ(
            usage_day, subject, f"{said.direction} lines state other terms than price version {said.price_id}"
        )
    return terms.exact[said.tier]
