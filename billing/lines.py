"""The lines of a bill: usage put at its prices, as rows of `bill_lines`."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from typing import Any

from billing.month_totals import TokensByAccount
from billing.owing import Usage
from billing.prices.tariff import Tariff
from billing.rating import (
    DIRECTIONS,
    MINIMUM,
    NO_DISCOUNT,
    UNRATED,
    Subject,
    Terms,
    quantities,
)
from billing.tables import bill_lines

COLUMNS = tuple(column.name for column in bill_lines.columns)


class Rater:
    """A tariff on one day of usage; every price is looked up once."""

    def __init__(self, tariff: Tariff, usage_day: date) -> None:
        self._tariff = tariff
        self._day = usage_day
        self._terms: dict[tuple[Any, ...], tuple[Terms, ...] | None] = {}

    def subject(self, usage: Iterable[Any]) -> Subject:
        """The subject that is billed: the department is the one that a rule assigns, where one does."""
        if not self._tariff.departments:
            return Subject._make(usage)
        user, project, department, *what = usage
        assigned = self._tariff.departments.assigned(user, project, department, self._day)
        return Subject(user, project, assigned, *what)

    def terms(self, subject: Subject) -> tuple[Terms, ...] | None:
        """What each of DIRECTIONS costs; None: the model has no price on this day."""
        rated_by = subject[2:]
        try:
            return self._terms[rated_by]
        except KeyError:
            found = self._terms[rated_by] = self._look_up(subject)
            return found

    def _look_up(self, subject: Subject) -> tuple[Terms, ...] | None:
        price = self._tariff.price_list.in_force(
            subject.model,
            subject.model_version,
            self._day,
            model_label=subject.model_label,
            latency_class=subject.latency_class,
            context_band=subject.context_band,
        )
        if price is None:
            return None
        discount = self._tariff.discount_list.in_force(subject.department, subject.model, self._day)
        return tuple(Terms(price, direction, discount) for direction in DIRECTIONS)


def make_lines(
    day: date, usage_day: date, rater: Rater, usages: Iterable[Usage], before: TokensByAccount
) -> list[tuple[Any, ...]]:
    """Rows of `bill_lines` (COLUMNS) for the bill of `day`; `before` is counted up on the way.

    Tokens that were unrated leave as lines of negative quantity, and come again at their price.
    """
    used: dict[Subject, list[int]] = {}
    priced: dict[Subject, list[int]] = {}
    for usage in usages:
        subject, tokens = rater.subject(usage[:8]), quantities(*usage[8:11])
        if usage.was_unrated:
            if rater.terms(subject) is None:
                continue
            _add(priced, subject, tokens)
        _add(used, subject, tokens)
    # As text, which is what the driver takes as it is.
    days = (day.isoformat(), usage_day.isoformat())
    rows: list[tuple[Any, ...]] = []
    for subject in sorted(priced):
        for direction, quantity in zip(DIRECTIONS, priced[subject], strict=True):
            if quantity:
                rows.append((*days, *subject, direction, *_unrated(-quantity)))
    for subject in sorted(used):
        terms = rater.terms(subject)
        for number, quantity in enumerate(used[subject]):
            if not quantity:
                continue
            if terms is None:
                rows.append((*days, *subject, DIRECTIONS[number], *_unrated(quantity)))
            else:
                rows += _rated(days, subject, terms[number], quantity, before)
    return rows


def minimum_line(
    day: date, usage_day: date, subject: Subject, terms: Terms, requests: int, amount_minor: int
) -> tuple[Any, ...]:
    """A row for requests that were topped up to the minimum of their price."""
    price = terms.price
    return (
        day.isoformat(), usage_day.isoformat(), *subject, MINIMUM, terms.price_id, 0, terms.discount,
        0, requests, 0, str(price.minimum), None, price.currency, amount_minor,
    )  # fmt: skip


def _rated(
    days: tuple[str, str], subject: Subject, terms: Terms, quantity: int, before: TokensByAccount
) -> list[tuple[Any, ...]]:
    direction, price_id, discount = terms.direction, terms.price_id, terms.discount
    account = (subject[0], subject[1], subject[2], direction, price_id, discount)
    so_far = before[account]
    before[account] = so_far + quantity
    price, unit_prices, key = terms.price, terms.unit_prices, days + subject
    return [
        (
            *key, direction, price_id, tier, discount, tokens, 0, tokens_before,
            unit_prices[tier], price.per_tokens, price.currency, amount,
        )
        for tier, tokens_before, tokens, amount in terms.charges(so_far, quantity)
    ]  # fmt: skip


def _unrated(quantity: int) -> tuple[Any, ...]:
    return (UNRATED, 0, NO_DISCOUNT, quantity, 0, 0, None, None, None, None)


def _add(sums: dict[Subject, list[int]], subject: Subject, tokens: tuple[int, int, int]) -> None:
    found = sums.get(subject)
    if found is None:
        sums[subject] = list(tokens)
    else:
        for number, quantity in enumerate(tokens):
            found[number] += quantity
