"""A generated month of bills, as the lines of a ledger: for tests of what reads them."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing.prices import Price, Tier
from billing.rating import DIRECTIONS, UNRATED, Terms
from billing.tables import bill_days, bill_lines, bill_totals
from tests.billing.factories import a_price

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
_TERMS = ("direction", "price_id", "tier", "discount_percent")


@lru_cache
def _terms(price: Price, direction: str, discount: str) -> tuple[Terms, str]:
    return Terms(price, direction, Decimal(discount)), price.id


@dataclass
class Bills:
    """Puts lines on bills as closing does: each continues the sums of the lines before it."""

    connection: Connection
    _months: dict[tuple[Any, ...], int] = field(default_factory=lambda: defaultdict(int))
    _totals: dict[tuple[Any, ...], list[int | None]] = field(default_factory=dict)
    _rows: dict[tuple[Any, ...], dict[str, Any]] = field(default_factory=dict)

    def close(self, *days: date, state: str = "closed") -> None:
        """Make the bills of these days, before lines are put on them."""
        now = datetime.now(timezone.utc)
        self.connection.execute(
            bill_days.insert(),
            [{"day": day, "state": state, "early": False, "closed_at": now} for day in days],
        )

    def add(
        self,
        day: date,
        tokens: int,
        price: Price | None = FLAT,
        *,
        direction: str = "input",
        usage_day: date | None = None,
        discount: str = "0",
        **subject: Any,
    ) -> None:
        """Bill tokens on a day: at a price, or unrated."""
        usage_day = usage_day or day
        key = {
            "day": day,
            "usage_day": usage_day,
            "user_id": "user-a",
            "project": "search",
            "department": "retail",
            "model": price.model if price else "unpriced",
            "model_version": "1",
            "model_label": "",
            "latency_class": "standard",
            "context_band": 0,
            "direction": direction,
            **subject,
        }
        if price is None:
            nothing = {"unit_price": None, "per_tokens": None, "currency": None}
            self._put({**key, "price_id": UNRATED, "tier": 0, "discount_percent": "0"}, nothing, tokens, None)
            return
        terms, price_id = _terms(price, direction, discount)
        month = (usage_day.replace(day=1), key["user_id"], key["project"], key["department"])
        running = (*month, direction, price_id, discount)
        for charge in terms.charges(self._months[running], tokens):
            self._put(
                {**key, "price_id": price_id, "tier": charge.tier, "discount_percent": discount},
                {
                    "unit_price": terms.unit_prices[charge.tier],
                    "per_tokens": price.per_tokens,
                    "currency": price.currency,
                },
                charge.quantity_tokens,
                charge.amount_minor,
                charge.tokens_before,
            )
        self._months[running] += tokens

    def minimum(self, day: date, requests: int, amount_minor: int, price: Price = FLAT) -> None:
        """Bill what requests lack to the minimum of their price."""
        self.add(day, 1, price)
        row = dict(next(r for r in reversed(self._rows.values()) if r["price_id"] == price.id))
        row |= {"direction": "minimum", "tier": 0, "quantity_tokens": 0, "quantity_requests": requests}
        self._rows[tuple(row[c.name] for c in bill_lines.primary_key)] = row | {"amount_minor": amount_minor}

    def write(self) -> None:
        """Insert the lines and the sums of the months."""
        self.connection.execute(bill_lines.insert(), list(self._rows.values()))
        names = [column.name for column in bill_totals.primary_key]
        self.connection.execute(
            bill_totals.insert(),
            [
                {**dict(zip(names, key, strict=True)), "quantity_tokens": tokens, "amount_minor": amount}
                for key, (tokens, amount) in self._totals.items()
            ],
        )

    def _put(
        self, key: dict[str, Any], terms: dict[str, Any], tokens: int, amount: int | None, before: int = 0
    ) -> None:
        nothing = None if amount is None else 0
        row = self._rows.setdefault(
            tuple(key[column.name] for column in bill_lines.primary_key),
            {
                **key,
                **terms,
                "tokens_before": before,
                "quantity_tokens": 0,
                "quantity_requests": 0,
                "amount_minor": nothing,
            },
        )
        total = self._totals.setdefault(
            (
                key["usage_day"].replace(day=1),
                *(key[n] for n in ("user_id", "project", "department", *_TERMS)),
            ),
            [0, nothing],
        )
        row["quantity_tokens"] += tokens
        total[0] = (total[0] or 0) + tokens
        if amount is not None:
            row["amount_minor"] = (row["amount_minor"] or 0) + amount
            total[1] = (total[1] or 0) + amount


def month_of_bills(connection: Connection, seed: int = 1) -> None:
    """November 2026: users, projects and departments, tiers crossed, a discount, late and unrated tokens."""
    chance = random.Random(seed)  # noqa: S311
    days = [date(2026, 11, 1) + timedelta(days=n) for n in range(30)]
    bills = Bills(connection)
    bills.close(*days, date(2026, 12, 1))
    for day in days:
        for subject, price, discount in _customers():
            for direction in DIRECTIONS:
                bills.add(
                    day, chance.randint(1, 9_999), price, direction=direction, discount=discount, **subject
                )
        if day.day % 7 == 0:  # what came late
            bills.add(day, chance.randint(1, 999), usage_day=day - timedelta(days=3))
            bills.add(day, chance.randint(1, 999), usage_day=date(2026, 10, 30))
            bills.add(day, chance.randint(1, 999), None, usage_day=day - timedelta(days=2))
    bills.add(date(2026, 12, 1), 777, usage_day=date(2026, 11, 30))
    bills.write()


def _customers() -> Iterator[tuple[dict[str, Any], Price | None, str]]:
    yield {}, FLAT, "0"
    yield {"user_id": "user-b"}, FLAT, "0"
    yield {"user_id": "user-b", "model_version": "2", "model_label": "canary"}, FLAT, "0"
    yield {"project": "ads", "department": "media"}, FLAT, "12.5"
    yield {"user_id": "user-c", "project": "ads", "department": "media"}, GRADUATED, "12.5"
    yield {"user_id": "user-a"}, GRADUATED, "0"
    yield {"user_id": "user-a"}, VOLUME, "0"
    yield {"user_id": "user-c"}, None, "0"


def billed_minor(connection: Connection, *where: sa.ColumnElement[bool]) -> int:
    """What lines come to, in minor units."""
    return connection.scalar(sa.select(sa.func.sum(bill_lines.c.amount_minor)).where(*where)) or 0
