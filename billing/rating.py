"""Rating: token sums of one day at a price make lines. Pure: no clock, no database, no float."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

from billing.money import charge
from billing.prices import Price

UNRATED = ""  # the price_id of tokens whose model has no price: metered, shown, not free
DIRECTIONS = ("input", "cached_input", "output")
# The least prompt tokens of each band that a price may tell apart. Fixed, because the aggregates are kept by
# band: a price with bounds of its own would need every event again.
CONTEXT_BANDS = (0, 32_769, 65_537, 131_073, 200_001, 262_145, 524_289)


def context_band(prompt_tokens: int) -> int:
    """The band of a request, as the least prompt tokens of it: 40,000 are in band 32,769."""
    return CONTEXT_BANDS[bisect_right(CONTEXT_BANDS, prompt_tokens) - 1]


class Subject(NamedTuple):
    """Whose usage, of what: one line of a bill is about one subject and one direction."""

    user_id: str
    project: str
    department: str
    model: str
    model_version: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Token sums of one subject over one billing day; cached tokens are part of the prompt's."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int

    def quantities(self) -> dict[str, int]:
        """Tokens by direction; no token is in two of them (rule 11)."""
        return {
            "input": self.prompt_tokens - self.cached_tokens,
            "cached_input": self.cached_tokens,
            "output": self.completion_tokens,
        }


@dataclass(frozen=True, slots=True)
class Charge:
    """What one direction of one subject's day comes to, at one price or at none."""

    price_id: str
    quantity_tokens: int
    unit_price: Decimal | None = None
    per_tokens: int | None = None
    currency: str | None = None
    amount_minor: int | None = None


def rate(direction: str, quantity_tokens: int, price: Price | None) -> Charge:
    """Price one direction of one subject's usage over one billing day.

    Args:
        direction: one of DIRECTIONS.
        quantity_tokens: the sum over the half-open interval of the day.
        price: the version in force on that day, None when the model has none.
    Returns: a charge in minor units of the price's currency, rounded once, half up; without an amount
        when there is no price.
    """
    if price is None:
        return Charge(UNRATED, quantity_tokens)
    unit_price = price.of(direction)
    amount = charge(quantity_tokens, unit_price, price.per_tokens, price.currency)
    return Charge(price.id, quantity_tokens, unit_price, price.per_tokens, price.currency, amount)


def difference(owed: Charge | None, billed: Charge | None) -> Charge | None:
    """What is still to be billed at one price, once `billed` is on closed bills; None when nothing is.

    Either may be missing, not both. Amounts are subtracted, never rated anew, so that all lines of a
    day at a price always sum to the price of the sum.
    """
    known = owed or billed
    if known is None:
        raise ValueError("nothing was used and nothing was billed")
    quantity = (owed.quantity_tokens if owed else 0) - (billed.quantity_tokens if billed else 0)
    if known.price_id == UNRATED:
        return Charge(UNRATED, quantity) if quantity else None
    amount = ((owed and owed.amount_minor) or 0) - ((billed and billed.amount_minor) or 0)
    if not quantity and not amount:
        return None
    return Charge(known.price_id, quantity, known.unit_price, known.per_tokens, known.currency, amount)
