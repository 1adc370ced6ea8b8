"""Closed bills as FinOps FOCUS 1.2 cost and usage data: one row for each line that has an amount.

Which columns there are, and what may be in them, is said by the FOCUS specification, version 1.2
(requirements model 1.2.0.1, https://focus.finops.org/focus-specification/v1-2/). Every mandatory and
recommended column is here but AvailabilityZone, and the conditional ones whose condition holds: unit
prices, price lists, negotiated prices (our discounts), usage quantities, sub accounts (projects), tags,
resources (model versions). The others are left out, because what they tell of does not exist here:
AvailabilityZone and Region* (nothing is deployed in one), CapacityReservation* and CommitmentDiscount*
(neither is sold), PricingCurrency* (prices and bills are in one currency), BillingAccountType and
SubAccountType (there is one type of each).

A billing account is a department, a billing period a calendar month of the billing time zone, an invoice
the department's monthly statement. BilledCost is the line's amount as billed, rounded; ListCost and
ContractedCost are quantity times price, exact. Unrated lines become charges when they get a price, and
come then, as corrections. What requests lack to a minimum has no quantity that a price could be
multiplied with: it is an Adjustment.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date, datetime, tzinfo
from decimal import Context, Decimal, Inexact
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TypeAlias

from billing.exports.closed_bills import exact_decimal, token_price
from billing.money import to_decimal
from billing.rating import MINIMUM
from billing.statements.statement import statement_id
from tallybook.calendar import day_interval, month_start, next_month

Kind: TypeAlias = Literal["decimal", "text", "time"]
Value: TypeAlias = "Decimal | str | datetime | None"
Row: TypeAlias = Mapping[str, Value]
VERSION = "1.2"

COLUMNS: dict[str, Kind] = {
    "BilledCost": "decimal",
    "BillingAccountId": "text",
    "BillingAccountName": "text",
    "BillingCurrency": "text",
    "BillingPeriodEnd": "time",
    "BillingPeriodStart": "time",
    "ChargeCategory": "text",
    "ChargeClass": "text",
    "ChargeDescription": "text",
    "ChargeFrequency": "text",
    "ChargePeriodEnd": "time",
    "ChargePeriodStart": "time",
    "ConsumedQuantity": "decimal",
    "ConsumedUnit": "text",
    "ContractedCost": "decimal",
    "ContractedUnitPrice": "decimal",
    "EffectiveCost": "decimal",
    "InvoiceId": "text",
    "InvoiceIssuerName": "text",
    "ListCost": "decimal",
    "ListUnitPrice": "decimal",
    "PricingCategory": "text",
    "PricingQuantity": "decimal",
    "PricingUnit": "text",
    "ProviderName": "text",
    "PublisherName": "text",
    "ResourceId": "text",
    "ResourceName": "text",
    "ResourceType": "text",
    "ServiceCategory": "text",
    "ServiceName": "text",
    "ServiceSubcategory": "text",
    "SkuId": "text",
    "SkuMeter": "text",
    "SkuPriceDetails": "text",
    "SkuPriceId": "text",
    "SubAccountId": "text",
    "SubAccountName": "text",
    "Tags": "text",
    "x_BillDay": "text",
    "x_ContextBand": "decimal",
    "x_DiscountPercent": "decimal",
    "x_LatencyClass": "text",
    "x_Model": "text",
    "x_ModelLabel": "text",
    "x_ModelVersion": "text",
    "x_Project": "text",
    "x_RequestQuantity": "decimal",
    "x_Tier": "decimal",
    "x_UsageDay": "text",
    "x_UserId": "text",
}

_OF_QUANTITIES = (
    "ConsumedQuantity", "ConsumedUnit", "PricingQuantity", "PricingUnit",
    "ListUnitPrice", "ContractedUnitPrice",
)  # fmt: skip
_EXACT = Context(prec=60, traps=[Inexact])  # wider than any token count times any price
_METERS = {
    "input": "Input Tokens",
    "cached_input": "Cached Input Tokens",
    "output": "Output Tokens",
    MINIMUM: "Minimum per Request",
}


def focus_row(line: Mapping[str, Any], zone: tzinfo, provider: str, *, simulated: bool = False) -> Row:
    """A rated line of a closed bill as FOCUS columns, in their order; a simulated one has a tag that says so.

    Raises: ExportError: a price that has no end as a decimal (code inexact_decimal).
    """
    values = _whose(line, provider, simulated) | _when(line, zone) | _what(line) | _cost(line) | _custom(line)
    return {name: values[name] for name in COLUMNS}


def _whose(line: Mapping[str, Any], provider: str, simulated: bool) -> dict[str, Value]:
    tags = {f"tallybook:{name}": line[key] for name, key in (("user", "user_id"), ("label", "model_label"))}
    if simulated:
        tags["tallybook:simulated"] = "true"
    return {
        "BillingAccountId": line["department"],
        "BillingAccountName": line["department"],
        "InvoiceId": statement_id(line["day"], line["department"]),
        "InvoiceIssuerName": provider,
        "ProviderName": provider,
        "PublisherName": provider,
        "SubAccountId": line["project"],
        "SubAccountName": line["project"],
        "Tags": _json({name: value for name, value in tags.items() if value}),
    }


def _when(line: Mapping[str, Any], zone: tzinfo) -> dict[str, Value]:
    day, usage_day = line["day"], line["usage_day"]
    return {
        "BillingPeriodStart": _start(month_start(day), zone),
        "BillingPeriodEnd": _start(next_month(day), zone),
        "ChargePeriodStart": _start(usage_day, zone),
        "ChargePeriodEnd": day_interval(usage_day, zone).end,
        # Of an earlier day in the same month it is part of this period's invoice, and no Correction.
        "ChargeClass": "Correction" if next_month(usage_day) <= day else None,
    }


def _what(line: Mapping[str, Any]) -> dict[str, Value]:
    model, version, direction = line["model"], line["model_version"], line["direction"]
    return {
        "ChargeCategory": "Adjustment" if direction == MINIMUM else "Usage",
        "ChargeDescription": _description(line),
        "ChargeFrequency": "Usage-Based",
        "ResourceId": f"{model}/{version}",
        "ResourceName": model,
        "ResourceType": "Model Version",
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": "Model Serving",
        "ServiceSubcategory": "AI Platforms",
        "SkuId": f"{model}/{direction}",
        "SkuMeter": _METERS[direction],
        "SkuPriceId": f"{line['price_id']}/{direction}/{line['tier']}",
        "SkuPriceDetails": _json({"x_PriceVersion": line["price_id"], "x_Tier": f"{line['tier'] + 1}"}),
        "PricingCategory": "Standard",
    }


def _cost(line: Mapping[str, Any]) -> dict[str, Value]:
    billed = to_decimal(line["amount_minor"], line["currency"])
    told: dict[str, Value] = {
        "BilledCost": billed,
        "EffectiveCost": billed,
        "BillingCurrency": line["currency"],
    }
    if line["direction"] == MINIMUM:
        return told | {"ListCost": billed, "ContractedCost": billed} | dict.fromkeys(_OF_QUANTITIES)
    tokens, per_tokens = line["quantity_tokens"], line["per_tokens"]
    prices = _prices(line["unit_price"], per_tokens, line["discount_percent"])
    return told | {
        "ConsumedQuantity": Decimal(tokens),
        "ConsumedUnit": "Tokens",
        "PricingQuantity": exact_decimal(Fraction(tokens, per_tokens)),
        "PricingUnit": "Tokens" if per_tokens == 1 else f"{per_tokens} Tokens",
        "ListUnitPrice": prices.unit,
        "ListCost": _EXACT.multiply(prices.token, Decimal(tokens)),
        "ContractedUnitPrice": prices.contracted_unit,
        "ContractedCost": _EXACT.multiply(prices.contracted_token, Decimal(tokens)),
    }


class _Prices(NamedTuple):
    """Of a pricing unit and of a token, by list and less the discount."""

    unit: Decimal
    token: Decimal
    contracted_unit: Decimal
    contracted_token: Decimal


@lru_cache(maxsize=1024)
def _prices(listed: str, per_tokens: int, discount_percent: str) -> _Prices:
    contracted = token_price(listed, per_tokens, discount_percent)
    return _Prices(
        Decimal(listed),
        exact_decimal(token_price(listed, per_tokens, "0")),
        exact_decimal(contracted * per_tokens),
        exact_decimal(contracted),
    )


def _custom(line: Mapping[str, Any]) -> dict[str, Value]:
    return {
        "x_BillDay": line["day"].isoformat(),
        "x_ContextBand": Decimal(line["context_band"]),
        "x_DiscountPercent": Decimal(line["discount_percent"]),
        "x_LatencyClass": line["latency_class"],
        "x_Model": line["model"],
        "x_ModelLabel": line["model_label"] or None,
        "x_ModelVersion": line["model_version"],
        "x_Project": line["project"],
        "x_RequestQuantity": Decimal(line["quantity_requests"]) if line["direction"] == MINIMUM else None,
        "x_Tier": Decimal(line["tier"] + 1),
        "x_UsageDay": line["usage_day"].isoformat(),
        "x_UserId": line["user_id"],
    }


def _description(line: Mapping[str, Any]) -> str:
    """What was charged and at which price; it begins with a word, whatever the names are."""
    what = f"{_METERS[line['direction']]} of {line['model']} {line['model_version']} on {line['usage_day']}"
    if line["direction"] == MINIMUM:
        return f"{what}: {line['quantity_requests']} requests topped up"
    price = f"{line['unit_price']} {line['currency']} per {line['per_tokens']}"
    discount = "" if line["discount_percent"] == "0" else f", less {line['discount_percent']}%"
    return f"{what}: {line['quantity_tokens']} at {price}{discount}"


@lru_cache(maxsize=1024)
def _start(day: date, zone: tzinfo) -> datetime:
    return day_interval(day, zone).start


def _json(values: Mapping[str, str]) -> str:
    return json.dumps(values, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
