"""Why a day differs from the day before: the one part that explains the most of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Literal

from billing.totals import Dimension, Part, Totals

Measure = Literal["amount", "tokens"]
Cause = Literal["new", "gone", "volume", "length", "volume_and_length", "price", "corrections"]


@dataclass(frozen=True, slots=True)
class Change:
    """From the day before to the day: tokens, or minor units of one currency."""

    before: int
    now: int

    @property
    def absolute(self) -> int:
        """How much more; negative: less."""
        return self.now - self.before

    @property
    def percent(self) -> Decimal | None:
        """In percent of the day before; None when that was nothing."""
        return Decimal(100 * self.absolute) / abs(self.before) if self.before else None


@dataclass(frozen=True, slots=True)
class Driver:
    """The part that explains the most of a change, and what about it moved.

    `change` is of the part and `whole` of the day: both in tokens, or both in minor units without
    corrections; of the corrections themselves when they drove it (then `dimension` is None).
    """

    measure: Measure
    dimension: Dimension | None
    name: str
    change: Change
    whole: Change
    before: Totals
    now: Totals
    cause: Cause

    @property
    def percent_of_whole(self) -> Decimal:
        """How much of the day's change it explains; above 100 when the rest moved the other way."""
        return Decimal(100 * self.change.absolute) / self.whole.absolute


def main_driver(
    before: Totals,
    now: Totals,
    parts_before: Mapping[Dimension, Sequence[Part]],
    parts_now: Mapping[Dimension, Sequence[Part]],
) -> Driver | None:
    """The narrowest part that explains at least half of the change; without one, the part that explains most.

    Money is explained when both days have comparable amounts that differ, else tokens. Dimensions are
    given from narrow to wide; one with a single part explains nothing, unless all of them have only one.
    Returns: None when nothing changed.
    """
    cost, tokens = cost_change(before, now), token_change(before, now)
    comparable = cost is not None and not (before.unrated_tokens or now.unrated_tokens)
    whole = cost if comparable and cost is not None and cost.absolute else tokens
    if not whole.absolute:
        return None
    measure: Measure = "amount" if whole is cost else "tokens"
    moves = [
        _moves(measure, whole, dimension, parts_before[dimension], parts_now[dimension])
        for dimension in parts_now
    ]
    telling = [parts for parts in moves if len(parts) > 1] or moves[:1]
    candidates = [_largest(parts) for parts in telling]
    if measure == "amount":
        corrected = Change(before.corrections_minor, now.corrections_minor)
        candidates.append(Driver(measure, None, "", corrected, whole, before, now, "corrections"))
    enough = [candidate for candidate in candidates if candidate.percent_of_whole >= 50]
    return enough[0] if enough else _largest(candidates)


def token_change(before: Totals, now: Totals) -> Change:
    """Tokens of the day against those of the day before."""
    return Change(before.total_tokens, now.total_tokens)


def cost_change(before: Totals, now: Totals) -> Change | None:
    """Bill against bill, corrections included; None when one has no amount or they are in two currencies."""
    if before.amount_minor is None or now.amount_minor is None or before.currency != now.currency:
        return None
    return Change(before.amount_minor, now.amount_minor)


def _moves(
    measure: Measure, whole: Change, dimension: Dimension, before: Sequence[Part], now: Sequence[Part]
) -> list[Driver]:
    """Every part of one dimension with its change, in the order of their keys."""
    parts_before = {part.key: part for part in before}
    parts_now = {part.key: part for part in now}
    moves = []
    for key in sorted(parts_before.keys() | parts_now.keys()):
        was = parts_before.get(key, Part(key, Totals()))
        is_ = parts_now.get(key, Part(key, Totals()))
        if measure == "amount":
            change = Change(was.totals.own_minor, is_.totals.own_minor)
        else:
            change = token_change(was.totals, is_.totals)
        cause = _cause(measure, was.totals, is_.totals)
        moves.append(Driver(measure, dimension, is_.name, change, whole, was.totals, is_.totals, cause))
    return moves


def _largest(moves: Sequence[Driver]) -> Driver:
    return max(moves, key=lambda move: move.percent_of_whole)


def _cause(measure: Measure, before: Totals, now: Totals) -> Cause:
    """What about a part moved: how often it was used, how much each time, or the price of a token."""
    if not before.total_tokens:
        return "new"
    if not now.total_tokens:
        return "gone"
    if measure == "amount":
        at_old_price = Fraction(before.own_minor * now.total_tokens, before.total_tokens)
        if 2 * abs(now.own_minor - at_old_price) > abs(now.own_minor - before.own_minor):
            return "price"
    more_tokens = now.total_tokens - before.total_tokens
    if not more_tokens:
        return "price"
    by_volume = Fraction(
        (now.requests - before.requests) * before.total_tokens, before.requests * more_tokens
    )
    if by_volume >= Fraction(2, 3):
        return "volume"
    return "length" if by_volume <= Fraction(1, 3) else "volume_and_length"
