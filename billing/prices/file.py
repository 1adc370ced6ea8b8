"""Reads the price file: prices, discounts and department rules in TOML, and nothing that is not exact."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

from billing.errors import PricesError
from billing.prices.departments import DepartmentRule
from billing.prices.discounts import Discount
from billing.prices.price_list import Price, Tier, TierMode, UnitPrice
from billing.prices.tariff import Tariff
from billing.rating import CONTEXT_BANDS
from billing.strict_toml import Entry, read

_DIRECTIONS = ("input", "cached_input", "output")
_MODES: tuple[TierMode, ...] = ("graduated", "volume")


def read_tariff(file: Path) -> Tariff:
    """Read a price file.

    Raises: PricesError: no such file (prices_missing); or not TOML, or an entry is incomplete, misspelt,
        inexact, in another currency, or for the same usage and day as another one (prices_invalid).
    """
    document = read(file, "prices", PricesError)
    document.only("currency", "per_tokens", "prices", "discounts", "departments")
    currency = document.currency("currency")
    per_tokens = _per_tokens(document, 1000)
    prices: dict[Any, Price] = {}
    for entry in document.entries("prices"):
        for price in _prices(entry, currency, per_tokens):
            target = (price.model, price.model_version, price.model_label, price.latency_class)
            _keep(prices, (*target, price.context_band, price.effective_from), price, entry)
    discounts: dict[Any, Discount] = {}
    for entry in document.entries("discounts"):
        discount = _discount(entry)
        _keep(discounts, (discount.department, discount.model, discount.effective_from), discount, entry)
    rules: dict[Any, DepartmentRule] = {}
    for entry in document.entries("departments"):
        rule = _rule(entry)
        _keep(rules, (rule.user, rule.project, rule.effective_from), rule, entry)
    return Tariff(tuple(prices.values()), tuple(discounts.values()), tuple(rules.values()))


def _prices(entry: Entry, currency: str, per_tokens: int) -> list[Price]:
    """An entry's price, and one for each of its context bands."""
    entry.only(
        "model", "version", "label", "latency_class", "effective_from", "currency", "per_tokens", "tiers",
        *_DIRECTIONS, "minimum", "context_bands",
    )  # fmt: skip
    if "version" in entry.table and "label" in entry.table:
        entry.refuse("give a version or a label, not both")
    if entry.table.get("currency", currency) != currency:
        entry.refuse(f"currency must be the file's, {currency}: amounts in two currencies can't be added")
    bands = [(0, entry)]
    for band in entry.entries("context_bands"):
        band.only("above", *_DIRECTIONS)
        above = band.whole("above")
        if above + 1 not in CONTEXT_BANDS:
            known = ", ".join(str(bound - 1) for bound in CONTEXT_BANDS[1:])
            band.refuse(f"above must be one of {known}: usage is summed by these")
        bands.append((above + 1, band))
    tiers = _mode(entry)
    minimum = entry.decimal("minimum") if "minimum" in entry.table else None
    if tiers and minimum is not None:
        entry.refuse("a minimum can't go with tiers: what a request costs would depend on those after it")
    prices = []
    for context_band, source in bands:
        unit_prices = {name: _unit_price(source, name, tiers) for name in _DIRECTIONS if name in source.table}
        for name in {"input", "output"} - unit_prices.keys():
            source.refuse(f"{name} is missing")
        price = Price(
            model=entry.name("model"),
            model_version=_optional_name(entry, "version"),
            effective_from=entry.day("effective_from"),
            currency=currency,
            per_tokens=_per_tokens(entry, per_tokens),
            input=unit_prices["input"],
            cached_input=unit_prices.get("cached_input", unit_prices["input"]),
            output=unit_prices["output"],
            model_label=_optional_name(entry, "label"),
            latency_class=_optional_name(entry, "latency_class"),
            context_band=context_band,
            tiers=tiers,
            minimum=minimum,
        )
        prices.append(price)
    if tiers and not any(
        isinstance(p, tuple) for price in prices for p in (price.input, price.cached_input, price.output)
    ):
        entry.refuse(f"tiers says {tiers}, but every price is flat")
    return prices


def _mode(entry: Entry) -> TierMode | None:
    found = entry.table.get("tiers")
    for mode in _MODES:
        if found == mode:
            return mode
    if found is not None:
        entry.refuse('tiers must be "graduated" or "volume"')
    return None


def _unit_price(entry: Entry, name: str, tiers: TierMode | None) -> UnitPrice:
    """A flat price in quotes, or a list of tiers whose bounds rise and whose last one has no end."""
    if not isinstance(entry.table[name], list):
        return entry.decimal(name)
    if tiers is None:
        entry.refuse(f'{name} has tiers: say tiers = "graduated" or "volume"')
    found: list[Tier] = []
    for tier in entry.entries(name):
        tier.only("up_to", "price")
        up_to = tier.whole("up_to") if "up_to" in tier.table else None
        if found and (found[-1].up_to is None or (up_to is not None and up_to <= found[-1].up_to)):
            tier.refuse("up_to must rise from tier to tier, and only the last tier goes without")
        if up_to == 0:
            tier.refuse("up_to must be above 0")
        found.append(Tier(up_to, tier.decimal("price")))
    if not found or found[-1].up_to is not None:
        entry.refuse(f"the last tier of {name} must have no up_to: above it nothing would have a price")
    return tuple(found)


def _discount(entry: Entry) -> Discount:
    entry.only("department", "model", "percent", "effective_from")
    percent = entry.decimal("percent")
    if percent > Decimal(100):
        entry.refuse("percent must be 0 to 100")
    return Discount(
        entry.name("department"), _optional_name(entry, "model"), percent, entry.day("effective_from")
    )


def _rule(entry: Entry) -> DepartmentRule:
    entry.only("user", "project", "department", "effective_from")
    user, project = _optional_name(entry, "user"), _optional_name(entry, "project")
    if user is None and project is None:
        entry.refuse("say whose department it is: user, project, or both")
    return DepartmentRule(user, project, entry.name("department"), entry.day("effective_from"))


def _per_tokens(entry: Entry, default: int) -> int:
    if "per_tokens" not in entry.table:
        return default
    found = entry.whole("per_tokens")
    if found < 1:
        entry.refuse("per_tokens must be a whole number above 0")
    return found


def _optional_name(entry: Entry, key: str) -> str | None:
    return entry.name(key) if key in entry.table else None


def _keep(found: dict[Any, Any], key: tuple[str | int | date | None, ...], terms: Any, entry: Entry) -> None:
    if key in found:
        told = ", ".join(str(part) for part in key if part not in (None, 0))
        entry.refuse(f"a second one for {told}")
    found[key] = terms
