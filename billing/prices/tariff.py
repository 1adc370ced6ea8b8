"""The tariff: everything that decides what usage costs and who pays it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from billing.prices.departments import DepartmentRule, Departments
from billing.prices.discounts import Discount, DiscountList
from billing.prices.price_list import Price, PriceList


@dataclass(frozen=True)
class Tariff:
    """Prices, discounts and department rules, as the price file lists them and the ledger keeps them."""

    prices: tuple[Price, ...] = ()
    discounts: tuple[Discount, ...] = ()
    rules: tuple[DepartmentRule, ...] = ()

    @cached_property
    def price_list(self) -> PriceList:
        """The prices, by what was used and when."""
        return PriceList(self.prices)

    @cached_property
    def discount_list(self) -> DiscountList:
        """The discounts, by department, model and day."""
        return DiscountList(self.discounts)

    @cached_property
    def departments(self) -> Departments:
        """The rules, by user, project and day."""
        return Departments(self.rules)
