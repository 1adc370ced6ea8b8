"""Prices, discounts and department rules in words, for messages and for the diff before an import."""

from __future__ import annotations

from decimal import Decimal

from billing.prices.departments import DepartmentRule
from billing.prices.discounts import Discount
from billing.prices.price_list import Price, UnitPrice


def named(terms: Price | Discount | DepartmentRule) -> str:
    """Which terms: 'the price of m, version 2, from 2026-01-01'."""
    if isinstance(terms, Price):
        parts = [terms.model]
        parts += [f"version {terms.model_version}"] if terms.model_version is not None else []
        parts += [f"label {terms.model_label}"] if terms.model_label is not None else []
        parts += [f"latency class {terms.latency_class}"] if terms.latency_class is not None else []
        parts += [f"input above {terms.context_band - 1:,} tokens"] if terms.context_band else []
        what = f"the price of {', '.join(parts)},"
    elif isinstance(terms, Discount):
        what = f"the discount of {terms.department} on {terms.model or 'every model'}"
    elif terms.user is None:
        what = f"the department of project {terms.project}"
    else:
        what = f"the department of user {terms.user}" + (
            f" in project {terms.project}" if terms.project else ""
        )
    return f"{what} from {terms.effective_from}"


def described(terms: Price | Discount | DepartmentRule) -> str:
    """Which terms, and what they say."""
    if isinstance(terms, Discount):
        return f"{named(terms)}: {terms.percent}% off"
    if isinstance(terms, DepartmentRule):
        return f"{named(terms)}: {terms.department}"
    says = [
        f"{name} {_unit_price(unit_price)}"
        for name, unit_price in (
            ("input", terms.input),
            ("cached input", terms.cached_input),
            ("output", terms.output),
        )
    ]
    told = f"{named(terms)}: {', '.join(says)} {terms.currency} per {terms.per_tokens:,} tokens"
    if terms.tiers:
        told += f", {terms.tiers} tiers"
    return told if terms.minimum is None else f"{told}, at least {terms.minimum} {terms.currency} a request"


def _unit_price(unit_price: UnitPrice) -> str:
    if isinstance(unit_price, Decimal):
        return str(unit_price)
    *below, last = unit_price
    return ", ".join([*(f"{tier.price} up to {tier.up_to:,}" for tier in below), f"then {last.price}"])
