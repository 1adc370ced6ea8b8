"""Whole days in a ledger, brought there as in production: journal, ingest, rate, close."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from datetime import date, datetime, time, timedelta
from pathlib import Path

from sqlalchemy.engine import Engine

from billing.bills import Closing, close_day, rate_day
from billing.ingest import ingest
from billing.ledger import reading, writing
from billing.prices.book import sync_prices
from billing.prices.price_list import Price
from billing.prices.tariff import Tariff
from billing.reports.day import DayReport, day_report
from tallybook.usage import UsageEvent
from tests.billing.factories import ZONE, a_price, write_segment


def at(day: date, hour: int = 12, minute: int = 0) -> datetime:
    """A moment of a billing day by the clock of the billing time zone."""
    return datetime.combine(day, time(hour, minute), tzinfo=ZONE)


def bring(ledger: Engine, events: Iterable[UsageEvent | bytes]) -> None:
    """Ingest events, and lines that are none."""
    with tempfile.TemporaryDirectory() as folder:
        # A name of its own: the ledger remembers how far it has read a segment.
        write_segment(Path(folder), events, f"{Path(folder).name}.jsonl")
        ingest(ledger, Path(folder), ZONE)


def draft(ledger: Engine, day: date, prices: Sequence[Price] = (a_price(),)) -> int:
    """Make the day's draft lines."""
    with writing(ledger) as connection:
        return rate_day(connection, day, sync_prices(connection, Tariff(tuple(prices)))).lines


def close(
    ledger: Engine,
    day: date,
    prices: Sequence[Price] = (a_price(),),
    *,
    tariff: Tariff | None = None,
    early: bool = False,
) -> Closing:
    """Close the day an hour after its end, or early at half past twelve; at `tariff` instead of `prices`."""
    now = at(day, 12, 30) if early else at(day + timedelta(days=1), 1)
    with writing(ledger) as connection:
        kept = sync_prices(connection, tariff or Tariff(tuple(prices)))
        return close_day(connection, day, kept, ZONE, early=early, now=now)


def report(ledger: Engine, day: date, user: str | None = None) -> DayReport:
    """Report the day as the ledger is now."""
    with reading(ledger) as connection:
        return day_report(connection, day, ZONE, user)
