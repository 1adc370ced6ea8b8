from __future__ import annotations

import csv
import io
import random
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.engine import Engine

from billing.ledger import reading
from billing.mail.bill_csv import COLUMNS, read_lines, write_bill
from billing.money import to_decimal
from billing.selection import Selection
from tests.billing.days import at, bring, close, report
from tests.billing.factories import DAY, a_price, an_event


def a_line(**changes: Any) -> dict[str, Any]:
    return {
        "day": DAY,
        "usage_day": DAY,
        "user_id": "user-a",
        "project": "search",
        "department": "retail",
        "model": "review-sentiment",
        "model_version": "1",
        "model_label": "",
        "latency_class": "standard",
        "context_band": 0,
        "direction": "input",
        "price_id": "0123456789abcdef",
        "tier": 1,
        "discount_percent": "12.5",
        "quantity_tokens": 100,
        "quantity_requests": 0,
        "tokens_before": 2000,
        "unit_price": "0.80",
        "per_tokens": 1000,
        "currency": "CNY",
        "amount_minor": 8,
    } | changes


def rows(bill: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(bill.decode("utf-8-sig"), newline="")))


def bill_of(ledger: Engine, user: str | None = None) -> bytes:
    with reading(ledger) as connection:
        return write_bill(read_lines(connection, DAY, Selection(user)))


def test_a_row_holds_a_line_under_the_ledgers_names() -> None:
    bill = write_bill([a_line()])
    assert bill.startswith(b"\xef\xbb\xbf" + ",".join(COLUMNS).encode() + b"\r\n")
    assert rows(bill) == [
        {
            "day": "2026-11-21",
            "usage_day": "2026-11-21",
            "user_id": "user-a",
            "project": "search",
            "department": "retail",
            "model": "review-sentiment",
            "model_version": "1",
            "model_label": "",
            "latency_class": "standard",
            "context_band": "0",
            "direction": "input",
            "price_id": "0123456789abcdef",
            "tier": "2",
            "discount_percent": "12.5",
            "quantity_tokens": "100",
            "quantity_requests": "0",
            "tokens_before": "2000",
            "unit_price": "0.80",
            "per_tokens": "1000",
            "currency": "CNY",
            "amount": "0.08",
        }
    ]


@pytest.mark.parametrize(
    ("minor", "currency", "amount"),
    [
        (123450, "CNY", "1234.50"),
        (-7, "CNY", "-0.07"),
        (0, "CNY", "0.00"),
        (1200, "JPY", "1200"),
        (1234, "KWD", "1.234"),
        (10**15 + 1, "CNY", "10000000000000.01"),
        (None, None, ""),
    ],
)
def test_an_amount_is_exact_and_empty_when_unrated(
    minor: int | None, currency: str | None, amount: str
) -> None:
    [row] = rows(write_bill([a_line(amount_minor=minor, currency=currency)]))
    assert row["amount"] == amount


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_text_that_a_spreadsheet_would_run_is_defused(start: str) -> None:
    evil = f"{start}HYPERLINK('http://example.com')"
    [row] = rows(write_bill([a_line(user_id=evil, model=evil)]))
    assert row["user_id"] == row["model"] == f"'{evil}"


def test_negative_numbers_stay_numbers() -> None:
    [row] = rows(write_bill([a_line(quantity_tokens=-5, amount_minor=-1)]))
    assert (row["quantity_tokens"], row["amount"]) == ("-5", "-0.01")


def test_each_row_of_a_simulated_bill_says_so() -> None:
    [row] = rows(write_bill([a_line()], simulated=True))
    assert row["simulated"] == "true"
    assert "simulated" not in rows(write_bill([a_line()]))[0]


def test_the_same_lines_make_the_same_bytes_in_any_order() -> None:
    lines = [a_line(user_id=f"user-{n}", direction=d) for n in range(9) for d in ("input", "output")]
    shuffled = random.Random(1).sample(lines, len(lines))  # noqa: S311 (not a secret)
    assert write_bill(shuffled) == write_bill(lines)


def test_the_rows_sum_to_the_reports_totals(ledger: Engine) -> None:
    before = DAY - timedelta(days=1)
    bring(ledger, [an_event(time=at(before))])
    close(ledger, before)
    bring(ledger, [an_event(time=at(before)), an_event(model="new-model")])
    bring(ledger, [an_event(user=f"user-{n}", prompt_tokens=n, cached_tokens=n // 2) for n in range(20)])
    close(ledger, DAY)
    told, found = report(ledger, DAY), rows(bill_of(ledger))
    amounts = [Decimal(row["amount"]) for row in found if row["amount"]]
    assert told.total.amount_minor is not None
    assert sum(amounts) == to_decimal(told.total.amount_minor, "CNY")
    own = [int(row["quantity_tokens"]) for row in found if row["usage_day"] == row["day"]]
    assert sum(own) == told.total.total_tokens
    unrated = [int(row["quantity_tokens"]) for row in found if not row["amount"]]
    assert sum(unrated) == told.total.unrated_tokens == 120


def test_a_users_bill_holds_that_users_rows(ledger: Engine) -> None:
    bring(ledger, [an_event(), an_event(user="user-b")])
    close(ledger, DAY, [a_price()])
    assert {row["user_id"] for row in rows(bill_of(ledger, "user-b"))} == {"user-b"}


def test_a_day_without_lines_is_a_bill_with_its_headings_only(sqlite_ledger: Engine) -> None:
    assert rows(bill_of(sqlite_ledger)) == []


_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(user=_text, model=_text, quantity=st.integers(-(10**15), 10**15), minor=st.integers(-(10**15), 10**15))
def test_whatever_a_line_holds_is_read_back(user: str, model: str, quantity: int, minor: int) -> None:
    [row] = rows(
        write_bill([a_line(user_id=user, model=model, quantity_tokens=quantity, amount_minor=minor)])
    )
    assert row["user_id"].removeprefix("'") == user.removeprefix("'")
    assert row["user_id"][:1] not in ("=", "+", "-", "@", "\t", "\r", "\n")
    assert row["model"].endswith(model)
    assert int(row["quantity_tokens"]) == quantity
    assert Decimal(row["amount"]) == to_decimal(minor, "CNY")
