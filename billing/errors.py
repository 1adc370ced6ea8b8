"""What can go wrong in billing, drawn once; every class has a stable code.

BillingError
├── LedgerError            the ledger can't be used as configured
├── PricesError            the price list is wrong, or would change the past
├── DayError               the day can't be rated or closed now
├── ClosureError           events, aggregates and lines disagree: nothing is closed, nothing is mailed
├── ExportError            a period can't be exported, or not to this file
├── AuditError             the ledger is not what it was when it was written
├── CostsError             the costs file is wrong
├── BudgetsError           the budgets file is wrong
├── SubscriptionsError     the subscriptions file is wrong
├── WalletError            credit can't be booked like this
├── SourceError            a source of events can't be read
├── CountersError          a model server's own counters can't be read
├── VersionsError          there are no versions to compare
├── ForecastError          there is nothing to forecast from
├── AlertError             an episode is not there, or can't be acknowledged
├── NotifyError            a channel did not take a message
├── SimulationError        simulated usage does not belong into this ledger
└── MailError              a mail can't be composed or delivered
"""

from __future__ import annotations


class BillingError(Exception):
    """Base of all; `code` is stable and machine-readable, the message is for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class LedgerError(BillingError):
    """The ledger can't be used as configured."""


class PricesError(BillingError):
    """The price list is wrong, or would change the past."""


class DayError(BillingError):
    """The day can't be rated or closed now."""


class ClosureError(BillingError):
    """Events, aggregates and lines disagree; the message names the first difference."""


class ExportError(BillingError):
    """A period can't be exported, or not to this file."""


class AuditError(BillingError):
    """The ledger is not what it was when it was written; the message names the first difference."""


class CostsError(BillingError):
    """The costs file is wrong."""


class BudgetsError(BillingError):
    """The budgets file is wrong."""


class SubscriptionsError(BillingError):
    """The subscriptions file is wrong."""


class WalletError(BillingError):
    """Credit can't be booked like this."""


class SourceError(BillingError):
    """A source of events can't be read; what was stored of it stands."""


class CountersError(BillingError):
    """A model server's own counters can't be read."""


class VersionsError(BillingError):
    """There are no versions to compare."""


class ForecastError(BillingError):
    """There is nothing to forecast from."""


class AlertError(BillingError):
    """An episode is not there, or can't be acknowledged."""


class NotifyError(BillingError):
    """A channel did not take a message; it stays in the outbox and is tried again."""


class SimulationError(BillingError):
    """Simulated usage does not belong into this ledger."""


class MailError(BillingError):
    """A mail can't be composed or delivered; it stays in the outbox and is tried again."""
