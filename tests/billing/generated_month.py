"""A generated November, brought into a ledger as in production: journal, ingest, rate, close."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from sqlalchemy.engine import Engine

from billing.bills import close_day
from billing.ingest import ingest
from billing.ledger import writing
from billing.prices.book import sync_prices
from billing.prices.departments import DepartmentRule
from billing.prices.discounts import Discount
from billing.prices.price_list import Tier
from billing.prices.tariff import Tariff
from tallybook.usage import UsageEvent
from tests.billing.days import at
from tests.billing.factories import ZONE, a_price, an_event, write_segment

NOVEMBER = date(2026, 11, 1)
FLAT = a_price()
GRADUATED = a_price(
    model="chat",
    per_tokens=1_000_000,
    tiers="graduated",
    input=(Tier(100_000, Decimal("2.5")), Tier(None, Decimal("1.25"))),
    cached_input=(Tier(None, Decimal("0.3")),),
    output=(Tier(50_000, Decimal("9.99")), Tier(None, Decimal("7.77"))),
)
VOLUME = a_price(
    model="embed",
    tiers="volume",
    input=(Tier(60_000, Decimal("0.13")), Tier(200_000, Decimal("0.11")), Tier(None, Decimal("0.07"))),
)
_START = date(2026, 1, 1)
MINIMUM = a_price(model="tiny", minimum=Decimal("0.05"))
TARIFF = Tariff(
    (FLAT, GRADUATED, VOLUME, MINIMUM),
    (Discount("media", None, Decimal("12.5"), _START),),
    (DepartmentRule("user-c", "ads", "media", _START),),
)
# Priced from its first day on, but only once it is known, in the middle of the month.
LATE_PRICE = a_price(model="unpriced", input=Decimal("0.333"))
PRICES = (*TARIFF.prices, LATE_PRICE)
_CUSTOMERS: tuple[dict[str, Any], ...] = (
    {},
    {"user": "user-b", "model_version": "2", "model_label": "canary"},
    {"project": "ads", "department": "media"},
    {"user": "user-c", "project": "ads", "model": "chat"},
    {"model": "chat"},
    {"model": "embed"},
    {"user": "user-b", "model": "tiny"},
    {"user": "user-c", "model": "unpriced"},
    {"user": "user-c", "model": "never-priced"},
)


def bill_november(ledger: Engine, journal: Path, seed: int = 1) -> None:
    """Ingest and close October 30 to December 1, with late events, and a model that gets its price late."""
    chance = random.Random(seed)  # noqa: S311
    day = date(2026, 10, 30)
    while day <= date(2026, 12, 1):
        write_segment(journal, _events(day, chance), f"{day}.jsonl")
        ingest(ledger, journal, ZONE)
        tariff = replace(TARIFF, prices=PRICES) if day > date(2026, 11, 20) else TARIFF
        with writing(ledger) as connection:
            now = at(day + timedelta(days=1), 1)
            close_day(connection, day, sync_prices(connection, tariff, now), ZONE, now=now)
        day += timedelta(days=1)


def _events(day: date, chance: random.Random) -> Iterator[UsageEvent]:
    for customer in _CUSTOMERS:
        yield _event(at(day, chance.randrange(24)), chance, customer)
    if day.day in (1, 9, 17):
        for days_late in (1, 3, 12):
            if day - timedelta(days=days_late) >= date(2026, 10, 30):
                yield _event(at(day - timedelta(days=days_late)), chance, chance.choice(_CUSTOMERS))


def _event(time: datetime, chance: random.Random, customer: dict[str, Any]) -> UsageEvent:
    most = 9 if customer.get("model") == "tiny" else 19_999
    prompt = chance.randint(1, most)
    return an_event(
        time=time,
        prompt_tokens=prompt,
        cached_tokens=chance.randint(0, prompt) // 2,
        completion_tokens=chance.randint(1, most) // 3,
        **customer,
    )
