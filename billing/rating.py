"""Rating: the tokens of a month, at a price, make lines. Pure: no clock, no database, no float."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from itertools import pairwise
from math import lcm
from typing import NamedTuple

from billing.money import ExactPrice, charge, exact_price
from billing.prices.price_list import Price, plain

UNRATED = ""  # the price_id of tokens whose model has no price: metered, shown, not free
NO_DISCOUNT = "0"
DIRECTIONS = ("input", "cached_input", "output")
MINIMUM = "minimum"  # the direction of what requests lack to their price's minimum
# The least prompt tokens of each band that a price may tell apart. Fixed, because the aggregates are kept by
# band: a price with bounds of its own would need every event again.
CONTEXT_BANDS = (0, 32_769, 65_537, 131_073, 200_001, 262_145, 524_289)


def context_band(prompt_tokens: int) -> int:
    """The band of a request, as the least prompt tokens of it: 40,000 are in band 32,769."""
    return CONTEXT_BANDS[bisect_right(CONTEXT_BANDS, prompt_tokens) - 1]


class Subject(NamedTuple):
    """Whose usage, of what, and what else decides its price: what a line is about, but for its direction."""

    user_id: str
    project: str
    department: str
    model: str
    model_version: str
    model_label: str
    latency_class: str
    context_band: int


def quantities(prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> tuple[int, int, int]:
    """Tokens in the order of DIRECTIONS; cached tokens are part of the prompt, and are charged once."""
    return prompt_tokens - cached_tokens, cached_tokens, completion_tokens


class Charge(NamedTuple):
    """Tokens that go on a bill in one tier, or leave it, after those that the month had there before."""

    tier: int
    tokens_before: int
    quantity_tokens: int
    amount_minor: int


@dataclass(frozen=True)
class Terms:
    """What the tokens of one direction cost at a price and a discount."""

    price: Price
    direction: str
    discount_percent: Decimal = Decimal(0)

    @cached_property
    def price_id(self) -> str:
        """The price version, as lines have it."""
        return self.price.id

    @cached_property
    def discount(self) -> str:
        """The discount as lines have it."""
        return plain(self.discount_percent)

    @cached_property
    def unit_prices(self) -> tuple[str, ...]:
        """Each tier's list price as lines have it, before the discount."""
        return tuple(str(tier.price) for tier in self.price.tiers_of(self.direction))

    @cached_property
    def exact(self) -> tuple[ExactPrice, ...]:
        """What a token of each tier costs, less the discount."""
        return tuple(
            exact_price(tier.price, self.price.per_tokens, self.price.currency, self.discount_percent)
            for tier in self.price.tiers_of(self.direction)
        )

    def spread(self, tokens: int) -> list[int]:
        """The tokens of a month by tier; they sum to `tokens`.

        Graduated tiers are filled one after the other; in volume tiers all tokens are in the one that
        their number reaches.
        """
        bounds = self._bounds
        if self.price.tiers == "volume":
            in_tiers = [0] * (len(bounds) + 1)
            in_tiers[bisect_left(bounds, tokens)] = tokens
            return in_tiers
        edges = [0, *(min(bound, tokens) for bound in bounds), tokens]
        return [upper - lower for lower, upper in pairwise(edges)]

    def charges(self, tokens_before: int, tokens: int) -> list[Charge]:
        """Bill `tokens` more, where the month has `tokens_before` at these terms on bills already.

        Per tier, the difference of what the month comes to after and before, so that all charges of a
        month, in whatever portions, sum to the price of its tokens, rounded once. Where a volume tier is
        crossed, the tokens of the tier below leave it (negative) and come again in the new one.
        """
        if not self._bounds:
            price = self.exact[0]
            before = charge(tokens_before, price) if tokens_before else 0
            amount = charge(tokens_before + tokens, price) - before
            return [Charge(0, tokens_before, tokens, amount)] if tokens else []
        had, has = self.spread(tokens_before), self.spread(tokens_before + tokens)
        return [
            Charge(tier, was, now - was, charge(now, self.exact[tier]) - charge(was, self.exact[tier]))
            for tier, (was, now) in enumerate(zip(had, has, strict=True))
            if was != now
        ]

    @cached_property
    def _bounds(self) -> tuple[int, ...]:
        return tuple(tier.up_to for tier in self.price.tiers_of(self.direction) if tier.up_to is not None)


class TopUp(NamedTuple):
    """Requests that cost less than the minimum of their price, and what they lack to it, not yet rounded."""

    requests: int
    lacking: ExactPrice


def top_up(price: Price, discount_percent: Decimal, requests: Iterable[tuple[int, int, int, int]]) -> TopUp:
    """What requests lack to the minimum of a flat price, less the discount.

    Args:
        requests: prompt, cached and completion tokens of a request, and how many there are of it. One
            without tokens, such as one that failed, lacks nothing.
    """
    least = exact_price(price.minimum or Decimal(0), 1, price.currency, discount_percent)
    exact = [Terms(price, direction, discount_percent).exact[0] for direction in DIRECTIONS]
    scale = lcm(least.denominator, *(each.denominator for each in exact))
    enough, *units = (each.numerator * (scale // each.denominator) for each in (least, *exact))
    topped_up = lacking = 0
    for prompt, cached, completion, count in requests:
        tokens = quantities(prompt, cached, completion)
        lacks = enough - sum(n * unit for n, unit in zip(tokens, units, strict=True))
        if lacks > 0 and any(tokens):
            topped_up += count
            lacking += lacks * count
    return TopUp(topped_up, ExactPrice(lacking, scale))
