"""The daily steps, as Airflow and the command line call them: ingest, rate, close, report, mail.

Each is a transaction over one billing day: run twice, or again after a crash, the result is the same.
"""

from __future__ import annotations

from datetime import date

from sqlalchemy.engine import Connection, Engine

from billing import audit, bills
from billing.audit import Trace, Verified
from billing.ingest import IngestResult
from billing.ingest import ingest as ingest_journal
from billing.ledger import open_ledger, reading, writing
from billing.prices import PriceList, read_prices, sync_prices
from billing.settings import BillingSettings


def ingest(settings: BillingSettings) -> IngestResult:
    """Store what the journal holds and the ledger does not have yet."""
    return ingest_journal(_ledger(settings), settings.journal_dir, settings.zone)


def rate(settings: BillingSettings, day: date) -> int:
    """Make the day's draft lines anew at the prices of the price list; how many there are."""
    with writing(_ledger(settings)) as connection:
        return bills.rate_day(connection, day, _prices(connection, settings))


def close(settings: BillingSettings, day: date, *, early: bool = False) -> bills.Closing:
    """Close the day if its events, aggregates and lines agree; see `billing.bills.close_day`."""
    with writing(_ledger(settings)) as connection:
        return bills.close_day(connection, day, _prices(connection, settings), settings.zone, early=early)


def verify(settings: BillingSettings) -> Verified:
    """Recompute every closed bill and compare it with its seal; see `billing.audit.verify`."""
    with reading(_ledger(settings)) as connection:
        return audit.verify(connection)


def trace(settings: BillingSettings, request_id: str) -> Trace:
    """Walk a request to its bill; see `billing.audit.trace`."""
    with reading(_ledger(settings)) as connection:
        return audit.trace(connection, request_id)


def _ledger(settings: BillingSettings) -> Engine:
    return open_ledger(settings.ledger_url, settings.time_zone)


def _prices(connection: Connection, settings: BillingSettings) -> PriceList:
    return sync_prices(connection, read_prices(settings.prices_file))
