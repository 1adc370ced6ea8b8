"""Proof of closure: a day's events, aggregates and lines agree, to the token and to the last decimal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing.aggregates import events_are_dropped, prove_hours, whole
from billing.errors import ClosureError
from billing.lines import Rater
from billing.minimums import billed_minimums, owed_minimums
from billing.owing import CLOSED, waiting_batches
from billing.prices.book import kept_tariff
from billing.prices.tariff import Tariff
from billing.proof_lines import differ, prove_corrections, prove_own_lines
from billing.rating import DIRECTIONS, UNRATED, Subject, quantities
from billing.tables import COUNTS, bill_lines, event_batches, usage_events, usage_hours


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


class Begun(NamedTuple):
    """What a transaction that closes a day knows of its hours already."""

    usage: sa.Table  # their sums, see `billing.aggregates.sum_hours`
    hours_proven: Callable[[], None]  # waits until they are: see `billing.aggregates.prove_hours`


def prove(connection: Connection, day: date, begun: Begun | None = None) -> Proof:
    """Prove the bill of a day, for its own usage and for the earlier days that it corrects.

    The day's hours equal its events; all closed lines for the day, on this and on later bills, hold the
    tokens of the hours, each subject's and direction's; corrections on this bill hold the events that came
    late for it; and every line is at the terms in force on its day and comes to what these make of it.
    `begun` is what closing has got of this by now. That the lines of a month go on from each other is proven
    by `billing.month_proof`.
    Raises: ClosureError: the first difference found, named by day, subject and direction.
    """
    tariff = kept_tariff(connection)
    stored, lines = _stored(connection, day), _lines(connection, day)
    corrected = sorted((stored.keys() | lines.keys()) - {day})
    for usage_day in [*corrected, day]:
        rater = Rater(tariff, usage_day)
        if usage_day == day:
            if begun is None:
                prove_hours(connection, day)
            prove_own_lines(connection, day, rater, begun and begun.usage)
            if begun is not None:
                begun.hours_proven()
        elif not events_are_dropped(connection, usage_day):
            prove_corrections(connection, day, usage_day, rater)
        _prove_minimums(connection, usage_day, tariff, rater)
        on_bill = {direction: sums.tokens for direction, sums in lines[usage_day].items()}
        for direction, tokens in stored[usage_day].by_direction().items():
            if on_bill.get(direction, 0) != tokens:
                raise ClosureError(
                    "closure_mismatch",
                    f"bill of {day}, usage of {usage_day}: the batches of events hold {tokens} {direction} "
                    f"tokens, the lines {on_bill.get(direction, 0)}",
                )
    late = sum(stored[usage_day].tokens for usage_day in corrected)
    all_lines = [sums for by_direction in lines.values() for sums in by_direction.values()]
    return Proof(
        day=day,
        requests=sum(each.requests for each in stored.values()),
        event_tokens=sum(each.tokens for each in stored.values()),
        aggregate_tokens=_own_share_of_hours(connection, day) + late,
        line_tokens=sum(sums.tokens for sums in all_lines),
        unrated_tokens=sum(sums.unrated_tokens for sums in all_lines),
        amount_minor=sum(sums.amount_minor for sums in all_lines),
        currency=next((sums.currency for sums in all_lines if sums.currency), None),
        corrected_days=tuple(corrected),
    )


@dataclass(frozen=True)
class _Stored:
    """What the batches on a bill hold of a day of usage."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def by_direction(self) -> dict[str, int]:
        counts = quantities(self.prompt_tokens, self.cached_tokens, self.completion_tokens)
        return dict(zip(DIRECTIONS, counts, strict=True))


@dataclass(frozen=True)
class _Lines:
    """What the lines of a bill come to, in one direction of a day of usage."""

    tokens: int
    unrated_tokens: int
    amount_minor: int
    currency: str | None


def _stored(connection: Connection, day: date) -> defaultdict[date, _Stored]:
    sums = [whole(sa.func.sum(event_batches.c[name])) for name in ("requests", *COUNTS)]
    query = sa.select(event_batches.c.day, *sums).where(event_batches.c.bill_day == day)
    found: defaultdict[date, _Stored] = defaultdict(_Stored)
    for usage_day, *counts in connection.execute(query.group_by(event_batches.c.day)):
        found[usage_day] = _Stored(*counts)
    return found


def _lines(connection: Connection, day: date) -> defaultdict[date, dict[str, _Lines]]:
    line = bill_lines.c
    unrated = sa.case((line.price_id == UNRATED, line.quantity_tokens), else_=0)
    sums = [whole(sa.func.sum(what)) for what in (line.quantity_tokens, unrated, line.amount_minor)]
    query = (
        sa.select(line.usage_day, line.direction, *sums, sa.func.min(line.currency))
        .where(line.day == day)
        .group_by(line.usage_day, line.direction)
    )
    found: defaultdict[date, dict[str, _Lines]] = defaultdict(dict)
    for usage_day, direction, *rest in connection.execute(query):
        found[usage_day][direction] = _Lines(*rest)
    return found


def _own_share_of_hours(connection: Connection, day: date) -> int:
    """Tokens of the day's hours, less those of events that came late and are on other bills or on none."""

    def tokens(table: sa.Table, *where: sa.ColumnElement[bool]) -> int:
        total = whole(sa.func.sum(table.c.prompt_tokens + table.c.completion_tokens))
        return connection.execute(sa.select(total).where(table.c.day == day, *where)).scalar_one()

    elsewhere = (event_batches.c.bill_day.is_distinct_from(day), event_batches.c.rolled_up)
    return tokens(usage_hours) - tokens(event_batches, *elsewhere)


def _prove_minimums(connection: Connection, usage_day: date, tariff: Tariff, rater: Rater) -> None:
    """What closed bills took for the minimum is what the events on them lack, read once more."""
    if events_are_dropped(connection, usage_day):
        return
    billed = billed_minimums(connection, usage_day)
    on_bills = usage_events.c.batch_id.not_in(waiting_batches(usage_day))
    owed = {
        (subject, terms.price_id, terms.discount): minimum
        for subject, terms, minimum in owed_minimums(connection, usage_day, tariff, rater, on_bills)
    }
    for key in sorted(owed.keys() | billed.keys()):
        if owed.get(key) != billed.get(key):
            if key not in billed and _is_unrated(connection, usage_day, key[0]):
                continue  # it has got its price since, and is topped up where that is billed
            differ(
                usage_day, key[0], f"the minimum comes to {owed.get(key)}, the lines are {billed.get(key)}"
            )


def _is_unrated(connection: Connection, usage_day: date, subject: Subject) -> bool:
    """Whether closed bills have tokens of a subject's day that no later one has priced."""
    its = [bill_lines.c[name] == value for name, value in subject._asdict().items()]
    unrated = sa.select(whole(sa.func.sum(bill_lines.c.quantity_tokens))).where(
        bill_lines.c.usage_day == usage_day,
        bill_lines.c.price_id == UNRATED,
        bill_lines.c.day.in_(CLOSED),
        *its,
    )
    return connection.execute(unrated).scalar_one() != 0
