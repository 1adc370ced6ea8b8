"""The rules of FOCUS 1.2 for the columns of our exports, as its text and requirements model 1.2.0.1 say."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

Row = dict[str, Any]


def no_condition(row: Row) -> bool:
    return True


def is_usage(row: Row) -> bool:
    return bool(row["ChargeCategory"] == "Usage")


@dataclass(frozen=True)
class Rule:
    """What the specification says of a column.

    `required` says on which rows it must not be null; on others it may be, unless `forbidden` there.
    """

    kind: str
    required: Callable[[Row], bool] = no_condition
    forbidden: Callable[[Row], bool] = lambda row: False
    allowed: frozenset[str] | None = None
    least: Decimal | None = None


def usage_only(kind: str, **more: Any) -> Rule:
    """Not null on Usage; null or not on what is neither Usage nor Purchase, when it is no Correction."""
    return Rule(kind, required=lambda row: is_usage(row) and row["ChargeClass"] is None, **more)


# Allowed values: of ChargeCategory, ChargeFrequency, PricingCategory, and of ServiceSubcategory in the
# ServiceCategory "AI and Machine Learning".
_CATEGORIES = frozenset({"Usage", "Purchase", "Tax", "Credit", "Adjustment"})
_FREQUENCIES = frozenset({"One-Time", "Recurring", "Usage-Based"})
_PRICINGS = frozenset({"Standard", "Dynamic", "Committed", "Other"})
_AI = frozenset(
    {"AI Platforms", "Bots", "Generative AI", "Machine Learning", "Natural Language Processing",
     "Other (AI and Machine Learning)"}
)  # fmt: skip

RULES = {
    # Mandatory columns.
    "BilledCost": Rule("decimal"),
    "BillingAccountId": Rule("text"),
    "BillingAccountName": Rule("text", required=lambda row: False),
    "BillingCurrency": Rule("text", allowed=frozenset({"CNY"})),  # ISO 4217
    "BillingPeriodEnd": Rule("time"),
    "BillingPeriodStart": Rule("time"),
    "ChargeCategory": Rule("text", allowed=_CATEGORIES),
    "ChargeClass": Rule("text", required=lambda row: False, allowed=frozenset({"Correction"})),
    "ChargeDescription": Rule("text"),
    "ChargePeriodEnd": Rule("time"),
    "ChargePeriodStart": Rule("time"),
    "ContractedCost": Rule("decimal"),
    "EffectiveCost": Rule("decimal"),
    "InvoiceIssuerName": Rule("text"),
    "ListCost": Rule("decimal"),
    "PricingQuantity": usage_only("decimal"),
    "PricingUnit": Rule(
        "text",
        required=lambda row: row["PricingQuantity"] is not None,
        forbidden=lambda row: row["PricingQuantity"] is None,
    ),
    "ProviderName": Rule("text"),
    "PublisherName": Rule("text"),
    "ServiceCategory": Rule("text", allowed=frozenset({"AI and Machine Learning"})),
    "ServiceName": Rule("text"),
    # Recommended columns.
    "ChargeFrequency": Rule("text", allowed=_FREQUENCIES),
    "InvoiceId": Rule("text"),  # every row is on a department's statement
    "ServiceSubcategory": Rule("text", allowed=_AI),
    # Conditional columns, whose condition holds.
    "ConsumedQuantity": usage_only("decimal", forbidden=lambda row: not is_usage(row)),
    "ConsumedUnit": Rule(
        "text",
        required=lambda row: row["ConsumedQuantity"] is not None,
        forbidden=lambda row: row["ConsumedQuantity"] is None,
    ),
    "ContractedUnitPrice": usage_only("decimal", least=Decimal(0)),
    "ListUnitPrice": usage_only("decimal", least=Decimal(0)),
    "PricingCategory": usage_only("text", allowed=_PRICINGS),
    "ResourceId": Rule("text"),
    "ResourceName": Rule("text"),
    "ResourceType": Rule("text"),
    "SkuId": usage_only("text"),
    "SkuMeter": Rule("text"),
    "SkuPriceDetails": Rule("json", required=lambda row: False),
    "SkuPriceId": usage_only("text"),
    "SubAccountId": Rule("text"),
    "SubAccountName": Rule("text"),
    "Tags": Rule("json", required=lambda row: False),
}


_TYPES: dict[str, Any] = {"decimal": Decimal, "time": datetime}


def check(rows: list[Row]) -> None:
    """Every rule of the specification that concerns these columns, on every row."""
    assert rows
    for row in rows:
        for column, rule in RULES.items():
            value = row[column]
            if value is None:
                assert not rule.required(row), (column, row)
                continue
            assert not rule.forbidden(row), (column, row)
            assert isinstance(value, _TYPES.get(rule.kind, str)), column
            assert value != ""
            assert rule.allowed is None or value in rule.allowed, (column, value)
            assert rule.least is None or value >= rule.least, (column, value)
            if rule.kind == "json":  # KeyValueFormat: an object, whose values are no objects or arrays
                assert all(isinstance(v, str) for v in json.loads(value).values())
        if row["PricingQuantity"] is not None:
            assert row["ListUnitPrice"] * row["PricingQuantity"] == row["ListCost"], row
            assert row["ContractedUnitPrice"] * row["PricingQuantity"] == row["ContractedCost"], row
        else:  # a charge unrelated to others
            assert row["ListCost"] == row["ContractedCost"] == row["BilledCost"]
        assert row["EffectiveCost"] == row["BilledCost"]
        assert row["ChargePeriodStart"] < row["ChargePeriodEnd"] <= row["BillingPeriodEnd"]
        earlier = row["ChargePeriodStart"] < row["BillingPeriodStart"]
        assert (row["ChargeClass"] == "Correction") == earlier, row
        assert row["SkuPriceDetails"] is None or row["SkuPriceId"] is not None
    for child, parent in (("SkuPriceId", "SkuId"), ("InvoiceId", "BillingAccountId")):
        pairs = {(row[child], row[parent]) for row in rows}
        assert len(pairs) == len({first for first, _ in pairs}), f"{child} has one {parent}"
