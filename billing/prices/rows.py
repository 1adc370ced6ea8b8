"""Prices, discounts and department rules as rows of the ledger, and back."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import orjson

from billing.prices.departments import DepartmentRule
from billing.prices.discounts import Discount
from billing.prices.price_list import Price, Tier, UnitPrice


def price_row(price: Price) -> dict[str, Any]:
    """A row of `prices`, as far as the price decides it."""
    return {
        "id": price.id,
        "model": price.model,
        "model_version": price.model_version,
        "model_label": price.model_label,
        "latency_class": price.latency_class,
        "context_band": price.context_band,
        "effective_from": price.effective_from,
        "currency": price.currency,
        "per_tokens": price.per_tokens,
        "tiers": price.tiers,
        "input": _text(price.input),
        "cached_input": _text(price.cached_input),
        "output": _text(price.output),
        "minimum": None if price.minimum is None else str(price.minimum),
    }


def price_of(row: Any) -> Price:
    """The price of a row."""
    return Price(
        row.model, row.model_version, row.effective_from, row.currency, row.per_tokens,
        _unit_price(row.input), _unit_price(row.cached_input), _unit_price(row.output),
        row.model_label, row.latency_class, row.context_band, row.tiers,
        None if row.minimum is None else Decimal(row.minimum),
    )  # fmt: skip


def discount_row(discount: Discount) -> dict[str, Any]:
    """A row of `discounts`."""
    return {
        "id": discount.id,
        "department": discount.department,
        "model": discount.model,
        "percent": str(discount.percent),
        "effective_from": discount.effective_from,
    }


def discount_of(row: Any) -> Discount:
    """The discount of a row."""
    return Discount(row.department, row.model, Decimal(row.percent), row.effective_from)


def rule_row(rule: DepartmentRule) -> dict[str, Any]:
    """A row of `department_rules`."""
    return {
        "id": rule.id,
        "user_id": rule.user,
        "project": rule.project,
        "department": rule.department,
        "effective_from": rule.effective_from,
    }


def rule_of(row: Any) -> DepartmentRule:
    """The rule of a row."""
    return DepartmentRule(row.user_id, row.project, row.department, row.effective_from)


def _text(unit_price: UnitPrice) -> str:
    """Decimals as text, exact on every database; tiers as JSON."""
    if isinstance(unit_price, Decimal):
        return str(unit_price)
    return orjson.dumps([[tier.up_to, str(tier.price)] for tier in unit_price]).decode()


def _unit_price(text: str) -> UnitPrice:
    if not text.startswith("["):
        return Decimal(text)
    return tuple(Tier(up_to, Decimal(price)) for up_to, price in orjson.loads(text))
