"""Credit through the real path: events are served, days are closed, corrected and audited."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from billing import audit
from billing.errors import AuditError, ClosureError, PricesError
from billing.ledger import reading, writing
from billing.tables import bill_lines, usage_hours, wallet_entries
from billing.wallets import Balance, balances, entries, top_up
from tests.billing.days import at, bring, close, draft
from tests.billing.factories import DAY, a_price, an_event

NEXT = DAY + timedelta(1)


def topped_up(ledger: Engine, amount_minor: int, project: str = "search") -> None:
    with writing(ledger) as connection:
        top_up(connection, project, amount_minor, "CNY", "user-f")


def left(ledger: Engine) -> list[Balance]:
    with reading(ledger) as connection:
        return balances(connection)


def billed(ledger: Engine, project: str = "search") -> int:
    with reading(ledger) as connection:
        total = sa.select(sa.func.sum(bill_lines.c.amount_minor)).where(bill_lines.c.project == project)
        return int(connection.scalar(total) or 0)


def test_closing_charges_what_is_billed_once_and_corrections_follow(ledger: Engine) -> None:
    topped_up(ledger, 1000)
    bring(ledger, [an_event(time=at(DAY), prompt_tokens=10_000, completion_tokens=10_000)])
    bring(ledger, [an_event(time=at(DAY), project="chat")])
    draft(ledger, DAY)
    assert left(ledger) == [Balance("search", "CNY", 1000)]  # a draft takes nothing
    close(ledger, DAY)
    close(ledger, DAY)
    assert left(ledger) == [Balance("search", "CNY", 1000 - 800 - 2400)]
    bring(ledger, [an_event(time=at(DAY), prompt_tokens=1000, completion_tokens=0)])  # came late
    bring(ledger, [an_event(time=at(NEXT), prompt_tokens=0, completion_tokens=1000)])
    close(ledger, NEXT)
    assert left(ledger) == [Balance("search", "CNY", 1000 - 800 - 2400 - 80 - 240)]
    assert left(ledger)[0].balance_minor == 1000 - billed(ledger)
    with reading(ledger) as connection:
        assert [entry.bill_day for entry in entries(connection, "search")] == [None, DAY, NEXT]
        audit.verify(connection)


def test_a_closing_that_fails_charges_nothing(ledger: Engine) -> None:
    topped_up(ledger, 1000)
    bring(ledger, [an_event(time=at(DAY))])
    draft(ledger, DAY)
    with writing(ledger) as connection:
        connection.execute(usage_hours.update().values(requests=2))
    with pytest.raises(ClosureError):
        close(ledger, DAY)
    assert left(ledger) == [Balance("search", "CNY", 1000)]


@pytest.mark.parametrize(
    "altered",
    [{"amount_minor": -1}, {"currency": "EUR"}, {"who": "user-f"}, {"note": "x"}, {"at": at(DAY)}],
    ids=str,
)
def test_verify_finds_a_charge_that_was_altered(ledger: Engine, altered: dict[str, Any]) -> None:
    topped_up(ledger, 1000)
    bring(ledger, [an_event(time=at(DAY), prompt_tokens=10_000)])
    close(ledger, DAY)
    with writing(ledger) as connection:
        audit.verify(connection)
        charge = wallet_entries.update().where(wallet_entries.c.kind == "charge")
        connection.execute(charge.values(altered))
    with pytest.raises(AuditError, match="wallet of search: the charge for 2026-11-21"), reading(ledger) as c:
        audit.verify(c)


def test_prices_come_in_the_currency_of_the_credit_that_is_there(ledger: Engine) -> None:
    topped_up(ledger, 1000)
    with pytest.raises(PricesError, match="has bills or credit in CNY") as refused:
        draft(ledger, DAY, [a_price(currency="USD")])
    assert refused.value.code == "currency_changed"
    draft(ledger, DAY)


def test_verify_finds_a_charge_that_was_moved_among_other_entries(ledger: Engine) -> None:
    topped_up(ledger, 1000)
    bring(ledger, [an_event(time=at(DAY), prompt_tokens=10_000)])
    close(ledger, DAY)
    topped_up(ledger, 1000)
    with reading(ledger) as connection:
        audit.verify(connection)
    with writing(ledger) as connection:
        connection.execute(wallet_entries.update().where(wallet_entries.c.kind == "charge").values(id=99))
    with (
        reading(ledger) as connection,
        pytest.raises(AuditError, match=r"wallet of search: entry 99 \(charge\) is not where it was booked"),
    ):
        audit.verify(connection)
