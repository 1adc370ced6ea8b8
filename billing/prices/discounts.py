"""Discounts: what a department pays less, on every model or on one, from a day on. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from decimal import Decimal

from billing.prices.effective import Effective
from billing.prices.price_list import plain

_NONE = Decimal(0)


@dataclass(frozen=True, slots=True)
class Discount:
    """Percent off, 0 to 100, for a department from a billing day on; `model` None: off every model."""

    department: str
    model: str | None
    percent: Decimal
    effective_from: date

    @property
    def id(self) -> str:
        """Digest of the terms."""
        terms = (self.department, self.model, plain(self.percent), self.effective_from.isoformat())
        return hashlib.sha256(repr(terms).encode()).hexdigest()[:16]


class DiscountList:
    """Every discount, asked by department, model and day."""

    def __init__(self, discounts: Iterable[Discount]) -> None:
        self._percent = Effective(((d.department, d.model), d.effective_from, d.percent) for d in discounts)

    def in_force(self, department: str, model: str, day: date) -> Decimal:
        """Percent off on this billing day: the model's own before the department's; 0 when there is none."""
        own = self._percent.on((department, model), day)
        if own is None:
            own = self._percent.on((department, None), day)
        return _NONE if own is None else own
