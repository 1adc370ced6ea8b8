"""Credit is booked by hand, charged once for every bill, and provable to the last entry."""

from __future__ import annotations

from collections import defaultdict
from datetime import date, datetime, timedelta, timezone
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import Connection, Engine

from billing import chain
from billing.errors import AuditError, WalletError
from billing.ledger import reading, writing
from billing.tables import audit_records, bill_days, bill_lines, wallet_entries
from billing.wallets import Balance, balances, charge_wallets, entries, prove_wallets, refund, top_up
from tests.billing.single_lines import put_bill_day, put_line

DAY = date(2026, 11, 1)


def close_bill(connection: Connection, day: date, amounts: dict[str, int | None]) -> int:
    """Close a bill of one line a project, as billing.bills does, or close it again; how many it charged."""
    state = connection.scalar(sa.select(bill_days.c.state).where(bill_days.c.day == day))
    if state == "closed":
        return charge_wallets(connection, day)
    put_bill_day(connection, day)
    now = datetime.now(timezone.utc)
    connection.execute(bill_days.update().where(bill_days.c.day == day).values(closed_at=now))
    for project, amount in amounts.items():
        put_line(connection, day, amount, project=project)
    charged = charge_wallets(connection, day, now)
    chain.append(connection, "close", {"day": day.isoformat()})
    return charged


def test_a_bill_is_charged_in_its_currency_once_and_may_leave_less_than_nothing(ledger: Engine) -> None:
    with writing(ledger) as connection:
        assert top_up(connection, "search", 1000, "CNY", "user-f", "order 7").balance_minor == 1000
        assert close_bill(connection, DAY, {"search": 1234, "other": 50}) == 1
    with writing(ledger) as connection:
        assert close_bill(connection, DAY, {"search": 1234, "other": 50}) == 0
    with reading(ledger) as connection:
        assert balances(connection) == [Balance("search", "CNY", -234)]
        kinds = [(row.kind, row.amount_minor, row.bill_day) for row in entries(connection, "search")]
        prove_wallets(connection)
    assert kinds == [("topup", 1000, None), ("charge", -1234, DAY)]


def test_only_bills_closed_after_the_first_top_up_are_charged(ledger: Engine) -> None:
    with writing(ledger) as connection:
        close_bill(connection, DAY, {"search": 300})
        top_up(connection, "search", 1000, "CNY", "user-f")
        close_bill(connection, DAY + timedelta(1), {"search": 7})
        prove_wallets(connection)
        assert balances(connection, "search") == [Balance("search", "CNY", 993)]


def test_corrections_give_back_and_unrated_lines_take_nothing(ledger: Engine) -> None:
    with writing(ledger) as connection:
        top_up(connection, "search", 100, "CNY", "user-f")
        top_up(connection, "unrated", 100, "CNY", "user-f")
        close_bill(connection, DAY, {"search": -30, "unrated": None})
        prove_wallets(connection)
        assert {b.project: b.balance_minor for b in balances(connection)} == {"search": 130, "unrated": 100}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"amount_minor": 0}, "wallet_invalid"), ({"amount_minor": -1}, "wallet_invalid"),
        ({"project": "a b"}, "wallet_invalid"), ({"who": ""}, "wallet_invalid"),
        ({"note": "a\nb"}, "wallet_invalid"), ({"currency": "USD"}, "wallet_currency"),
    ],
)  # fmt: skip
def test_credit_that_can_not_be_booked_is_refused(
    sqlite_ledger: Engine, changes: dict[str, Any], code: str
) -> None:
    booking: dict[str, Any] = {
        "project": "search",
        "amount_minor": 1,
        "currency": "CNY",
        "who": "user-f",
        "note": "",
    }
    with writing(sqlite_ledger) as connection:
        top_up(connection, **booking)
    with pytest.raises(WalletError) as caught, writing(sqlite_ledger) as connection:
        top_up(connection, **(booking | changes))
    assert caught.value.code == code
    with reading(sqlite_ledger) as connection:
        assert balances(connection) == [Balance("search", "CNY", 1)]


def test_no_more_is_paid_back_than_is_left(ledger: Engine) -> None:
    with writing(ledger) as connection:
        top_up(connection, "search", 100, "CNY", "user-f")
        assert refund(connection, "search", 40, "CNY", "user-f").balance_minor == 60
        with pytest.raises(WalletError) as caught:
            refund(connection, "search", 61, "CNY", "user-f")
        assert caught.value.code == "wallet_too_low"
        prove_wallets(connection)


_OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("topup"), st.sampled_from("ab"), st.integers(1, 10**6)),
        st.tuples(
            st.just("close"),
            st.integers(0, 4),
            st.dictionaries(st.sampled_from("abc"), st.integers(-(10**6), 10**6)),
        ),
    ),
    max_size=15,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=_OPERATIONS)
def test_a_balance_is_top_ups_less_charges_in_any_order_and_however_often_days_are_closed(
    sqlite_ledger: Engine, operations: list[tuple[Any, ...]]
) -> None:
    expected: dict[str, int] = defaultdict(int)
    closed = set()
    with writing(sqlite_ledger) as connection:
        for table in (wallet_entries, bill_lines, bill_days, audit_records):
            connection.execute(table.delete())
    for kind, what, how in operations:
        with writing(sqlite_ledger) as connection:
            if kind == "topup":
                top_up(connection, what, how, "CNY", "user-f")
                expected[what] += how
                continue
            day = DAY + timedelta(what)
            if day not in closed:
                close_bill(connection, day, how)
                for project, amount in how.items():
                    if project in expected:
                        expected[project] -= amount
            closed.add(day)
    with reading(sqlite_ledger) as connection:
        assert {b.project: b.balance_minor for b in balances(connection)} == dict(expected)
        prove_wallets(connection)


@pytest.mark.parametrize(
    "change",
    [
        wallet_entries.update().where(wallet_entries.c.kind == "topup").values(amount_minor=5000),
        wallet_entries.update().where(wallet_entries.c.kind == "topup").values(who="user-x"),
        wallet_entries.update().where(wallet_entries.c.kind == "topup").values(note="x"),
        wallet_entries.update().values(at=datetime(2026, 1, 1, tzinfo=timezone.utc)),
        wallet_entries.update().where(wallet_entries.c.kind == "charge").values(amount_minor=-1),
        wallet_entries.update().where(wallet_entries.c.kind == "charge").values(bill_day=date(2026, 1, 1)),
        wallet_entries.delete().where(wallet_entries.c.kind == "topup"),
        wallet_entries.delete().where(wallet_entries.c.kind == "charge"),
        wallet_entries.insert().values(
            project="search", kind="topup", amount_minor=9, currency="CNY", who="user-x", note="",
            at=datetime(2026, 1, 1, tzinfo=timezone.utc),
        ),
        wallet_entries.insert().values(
            project="search", kind="charge", amount_minor=9, currency="CNY", who="user-x", note="",
            bill_day=date(2026, 1, 1), at=datetime(2026, 1, 1, tzinfo=timezone.utc),
        ),
    ],
)  # fmt: skip
def test_an_entry_that_was_altered_removed_or_put_in_is_found_and_named(
    sqlite_ledger: Engine, change: sa.Executable
) -> None:
    with writing(sqlite_ledger) as connection:
        top_up(connection, "search", 1000, "CNY", "user-f")
        close_bill(connection, DAY, {"search": 300})
        prove_wallets(connection)
        connection.execute(change)
        with pytest.raises(AuditError, match="wallet of search: ") as caught:
            prove_wallets(connection)
    assert caught.value.code == "wallet_altered"
