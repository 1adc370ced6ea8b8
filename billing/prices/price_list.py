"""The price list: what a model's tokens cost, as versions that take effect on a day. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Literal, NamedTuple, TypeAlias

from billing.prices.effective import Effective

TierMode: TypeAlias = Literal["graduated", "volume"]


class Tier(NamedTuple):
    """What a token costs up to this many a month; None: however many."""

    up_to: int | None
    price: Decimal


_Target: TypeAlias = "tuple[str, str | None, str | None, str | None]"  # model, version, label, latency class
UnitPrice: TypeAlias = "Decimal | tuple[Tier, ...]"


@dataclass(frozen=True, slots=True)
class Price:
    """What a model costs from a billing day on, in `currency` per `per_tokens` tokens of each direction.

    It holds for a version, for a label, or, with neither, for what has no price of its own; for one latency
    class, or, without, for every class that has none of its own; and for requests of at least
    `context_band` prompt tokens. With `tiers`, a direction's price depends on the tokens of the calendar
    month: `graduated` gives each tier's tokens its price, `volume` gives all tokens the price of the tier
    that the month has reached. `minimum` is what one request with tokens costs at least.
    """

    model: str
    model_version: str | None
    effective_from: date
    currency: str
    per_tokens: int
    input: UnitPrice
    cached_input: UnitPrice
    output: UnitPrice
    model_label: str | None = None
    latency_class: str | None = None
    context_band: int = 0
    tiers: TierMode | None = None
    minimum: Decimal | None = None

    @property
    def id(self) -> str:
        """Digest of the terms, so that other terms are another price: the price version on a line."""
        terms = (
            self.model, self.model_version, self.model_label, self.latency_class, self.context_band,
            self.effective_from.isoformat(), self.currency, self.per_tokens, self.tiers,
            None if self.minimum is None else plain(self.minimum),
            *[
                [(tier.up_to, plain(tier.price)) for tier in self.tiers_of(direction)]
                for direction in ("input", "cached_input", "output")
            ],
        )  # fmt: skip
        return hashlib.sha256(repr(terms).encode()).hexdigest()[:16]

    def tiers_of(self, direction: str) -> tuple[Tier, ...]:
        """The tiers of `input`, `cached_input` or `output`; a flat price is one tier without end."""
        unit_price = {"input": self.input, "cached_input": self.cached_input, "output": self.output}[
            direction
        ]
        return unit_price if isinstance(unit_price, tuple) else (Tier(None, unit_price),)


class PriceList:
    """Every price of the list, asked by what was used and on which day."""

    def __init__(self, prices: Iterable[Price]) -> None:
        starts: dict[tuple[_Target, date], dict[int, Price]] = {}
        for price in prices:
            target = (price.model, price.model_version, price.model_label, price.latency_class)
            starts.setdefault((target, price.effective_from), {})[price.context_band] = price
        self._bands = Effective((target, start, bands) for (target, start), bands in starts.items())

    def in_force(
        self,
        model: str,
        model_version: str,
        day: date,
        *,
        model_label: str = "",
        latency_class: str = "standard",
        context_band: int = 0,
    ) -> Price | None:
        """The price of this usage on this billing day; None: unrated.

        A version's own price comes before its label's, and that before the model's; among prices for the
        same of these, the latency class's own before the one for every class.
        """
        for version, label in ((model_version, None), (None, model_label), (None, None)):
            for latency in (latency_class, None):
                bands = self._bands.on((model, version, label, latency), day)
                begun = [band for band in bands or () if band <= context_band]
                if bands and begun:
                    return bands[max(begun)]
        return None


def plain(value: Decimal) -> str:
    """A decimal as text, one text for equal values: '0.8', '100', '0'."""
    return format(value.normalize() if value else Decimal(0), "f")
