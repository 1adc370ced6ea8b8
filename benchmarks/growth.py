"""A ledger that grows: `python -m benchmarks.growth [EVENTS]`, on PostgreSQL, by days of a million events.

Needs some 450 bytes of disk an event. At each size: how fast fresh events are ingested, how long the newest
day takes to close and one request takes to be found, and how large the ledger is.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

from sqlalchemy.engine import Engine

from benchmarks.closing import LISTED, fill, ledger_bytes
from benchmarks.ledger import ZONE, ZONE_NAME, events, postgres, write_journal
from billing.aggregates import roll_up
from billing.audit import trace
from billing.bills import close_day
from billing.ingest import store_journal
from billing.ledger import open_ledger, reading, writing
from billing.prices.book import sync_prices
from billing.prices.tariff import Tariff
from tallybook.calendar import ONE_DAY, day_interval

_A_DAY, _USERS, _FRESH = 1_000_000, 10_000, 100_000
_LAST = date(2026, 11, 20)
_HEAD = f"{'events':>12} {'ingest/s':>10} {'close s':>9} {'find ms':>9} {'bytes/event':>12}"


def grow(most: int) -> Iterator[str]:
    """A line of measures at one million events, and at each size three times the last, up to `most`."""
    with postgres("-c", "max_wal_size=1GB") as url, tempfile.TemporaryDirectory() as folder:
        ledger = open_ledger(url, ZONE_NAME)
        days = most // _A_DAY
        measured = 1
        for number in range(1, days + 1):
            day = _LAST - timedelta(days=days - number)
            fill(ledger, day, _A_DAY, _USERS, hashed=False)
            if number in (measured, days):
                measured *= 3
                yield _measured(ledger, day, number * _A_DAY, Path(folder) / f"{number}")
        ledger.dispose()


def _measured(ledger: Engine, day: date, held: int, journal: Path) -> str:
    journal.mkdir()
    write_journal(journal / f"{held}.jsonl", events(_FRESH, _USERS, day, seed=held))
    started = time.perf_counter()
    store_journal(ledger, journal, ZONE)
    ingested = time.perf_counter()
    with writing(ledger) as connection:
        roll_up(connection)
    rolled_up = time.perf_counter()
    with writing(ledger) as connection:
        tariff = sync_prices(connection, Tariff((LISTED,)))
        close_day(connection, day, tariff, ZONE, now=day_interval(day + ONE_DAY, ZONE).end)
    closed = time.perf_counter()
    one = next(events(1, _USERS, day, seed=held)).id
    with reading(ledger) as connection:
        looked = time.perf_counter()
        trace(connection, one)
        found = time.perf_counter()
    return (
        f"{held:12,} {_FRESH / (ingested - started):10,.0f} {closed - rolled_up:9.1f} "
        f"{(found - looked) * 1000:9.0f} {ledger_bytes(ledger) / held:12.0f}"
    )


if __name__ == "__main__":
    print(_HEAD)  # noqa: T201
    for line in grow(int(sys.argv[1]) if len(sys.argv) > 1 else 3_000_000):
        print(line, flush=True)  # noqa: T201
