"""Bills made by hand, line by line, for tests of what reads them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import date, datetime, timezone
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing.ledger import open_ledger, writing
from billing.prices.price_list import Price
from billing.rating import UNRATED, Terms
from billing.tables import bill_days, bill_lines, bill_totals
from tests.billing.conftest import TIME_ZONE
from tests.billing.factories import a_price

FLAT = a_price()
_TERMS = ("direction", "price_id", "tier", "discount_percent")


@lru_cache
def _terms(price: Price, direction: str, discount: str) -> tuple[Terms, str]:
    return Terms(price, direction, Decimal(discount)), price.id


def billed_ledger(folder: Path, *prices: Price | None) -> str:
    """The URL of a ledger with a closed bill of 2020-01-05: 5,000 tokens at each price, or unrated."""
    url = f"sqlite:///{folder / 'ledger.db'}"
    ledger = open_ledger(url, TIME_ZONE)
    with writing(ledger) as connection:
        bills = Bills(connection)
        bills.close(date(2020, 1, 5))
        for price in prices:
            bills.add(date(2020, 1, 5), 5_000, price)
        bills.write()
    ledger.dispose()
    return url


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

    def add_all_named(self, day: date, name: str) -> None:
        """Bill tokens whose user, project, department, model and version all have this name."""
        whose: dict[str, Any] = {"user_id": name, "project": name, "department": name, "model_version": name}
        self.add(day, 1_000, a_price(model=name), **whose)

    def minimum(self, day: date, requests: int, amount_minor: int, price: Price = FLAT) -> None:
        """Bill what requests lack to the minimum of their price."""
        self.add(day, 1, price)
        row = dict(next(r for r in reversed(self._rows.values()) if r["price_id"] == price.id))
        row |= {"direction": "minimum", "tier": 0, "quantity_tokens": 0, "quantity_requests": requests}
        row |= {"unit_price": "0.05", "per_tokens": None}
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


def billed_minor(connection: Connection, *where: sa.ColumnElement[bool]) -> int:
    """What lines come to, in minor units."""
    return connection.scalar(sa.select(sa.func.sum(bill_lines.c.amount_minor)).where(*where)) or 0
