from __future__ import annotations

import csv
import io
from datetime import date, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from sqlalchemy.engine import Connection, Engine

from billing.errors import BillingError
from billing.ledger import writing
from billing.selection import Selection
from billing.statements.statement import Statement, statement
from billing.statements.text import as_csv, as_text
from billing.tables import bill_days, bill_lines, bill_totals
from tallybook.cli import main
from tests.billing.factories import ZONE, a_price
from tests.billing.generated_month import NOVEMBER
from tests.billing.hand_made import FLAT, Bills, billed_ledger, billed_minor

LATER = datetime(2026, 12, 5, 12, tzinfo=ZONE)
ON_BILLS = bill_lines.c.day.between(NOVEMBER, date(2026, 11, 30))
OWN = (ON_BILLS, bill_lines.c.usage_day >= NOVEMBER)


def told(connection: Connection, selection: Selection | None = None, day: date = NOVEMBER) -> Statement:
    return statement(connection, day, ZONE, selection, LATER)


def test_a_statement_sums_the_lines_of_the_months_bills_to_the_token_and_to_the_cent(
    november: Connection,
) -> None:
    found = told(november)
    rows = (*found.rows, *found.corrections)
    assert (
        sum(row.amount_minor or 0 for row in rows) == found.amount_minor == billed_minor(november, ON_BILLS)
    )
    assert sum(row.quantity_tokens for row in rows) == november.scalar(
        sa.select(sa.func.sum(bill_lines.c.quantity_tokens)).where(ON_BILLS)
    )
    assert len({row[:7] for row in rows}) == len(rows)


def test_corrections_of_earlier_months_are_apart(november: Connection) -> None:
    found = told(november)
    assert {row.usage_month for row in found.rows} == {NOVEMBER}
    assert {row.usage_month for row in found.corrections} == {date(2026, 10, 1)}
    assert sum(row.amount_minor or 0 for row in found.rows) == billed_minor(november, *OWN)
    december = told(november, day=date(2026, 12, 1))
    assert {row.usage_month for row in december.corrections} == {NOVEMBER}


def test_the_statements_of_departments_sum_to_everybodys(november: Connection) -> None:
    parts = [told(november, Selection(department=name)) for name in ("retail", "media")]
    assert sum(part.amount_minor for part in parts) == told(november).amount_minor
    assert [part.id for part in parts] == ["2026-11/retail", "2026-11/media"]
    assert told(november).id is None
    assert told(november, Selection(department="media", user="user-c")).id is None
    assert told(november, Selection(department="media", user="user-c")).amount_minor == billed_minor(
        november, ON_BILLS, bill_lines.c.department == "media", bill_lines.c.user_id == "user-c"
    )


def test_what_was_rounded_is_stated_and_within_half_a_minor_unit_a_sum(november: Connection) -> None:
    found = told(november).rounding
    assert found.billed_minor == billed_minor(november, *OWN, bill_lines.c.direction != "minimum")
    totals = bill_totals.c
    sums = sa.select(sa.func.count()).where(
        totals.month == NOVEMBER, totals.price_id != "", totals.direction != "minimum"
    )
    assert found.sums == november.scalar(sums)
    difference = abs(found.exact * 100 - found.billed_minor)
    assert 0 < difference <= Fraction(found.sums, 2)


def test_the_carry_is_shown_on_a_line_of_the_statement_itself(sqlite_ledger: Engine) -> None:
    # 1,244 tokens at 0.80 per 1,000 are 0.9952; twice that is 1.9904.
    with writing(sqlite_ledger) as connection:
        bills = Bills(connection)
        bills.close(date(2026, 11, 3), date(2026, 11, 4))
        bills.add(date(2026, 11, 3), 1_244)
        bills.add(date(2026, 11, 4), 1_244)
        bills.add(date(2026, 11, 3), 1_244, usage_day=date(2026, 10, 30), user_id="user-0")  # not the month's
        bills.write()
        text = " ".join(as_text(told(connection)).split())
    assert (
        "Here, user-a in search used 1,244 input tokens on 2026-11-04. Alone they would cost ¥1.00. With "
        "them the month stood at 2,488 tokens, 1.9904 CNY, of which ¥1.00 were billed before, so the line "
        "says ¥0.99."
    ) in text
    assert (
        "cost 1.9904 CNY before rounding. They are 1 sum, rounded once, and come to ¥1.99: the difference "
        "is at most 1 times half of ¥0.01."
    ) in text


def test_it_is_provisional_while_a_day_is_to_be_billed(sqlite_ledger: Engine) -> None:
    with writing(sqlite_ledger) as connection:
        bills = Bills(connection)
        bills.close(date(2026, 12, 1), date(2026, 12, 2))
        bills.close(date(2026, 12, 3), state="draft")
        bills.add(date(2026, 12, 1), 10_000)
        bills.add(date(2026, 12, 3), 10_000)
        bills.write()
        found = told(connection, day=date(2026, 12, 9))
        assert found.open_days == (date(2026, 12, 3), *(date(2026, 12, n) for n in range(5, 32)))
        assert "provisional: still to be billed are 2026-12-03, 2026-12-05 to 2026-12-31" in as_text(found)
        assert found.amount_minor == 1600  # drafts are in it

        connection.execute(bill_days.update().values(state="closed"))
        january = statement(connection, date(2026, 12, 1), ZONE, now=datetime(2027, 1, 9, tzinfo=ZONE))
        assert january.open_days == ()
        assert "final" in as_text(january)


def test_it_is_readable_in_100_columns(november: Connection) -> None:
    for selection in (Selection(), Selection(project="ads")):
        assert max(map(len, as_text(told(november, selection)).splitlines())) <= 100


def test_long_names_wrap(sqlite_ledger: Engine) -> None:
    name = "n" * 128
    with writing(sqlite_ledger) as connection:
        bills = Bills(connection)
        bills.close(date(2026, 11, 3))
        names: dict[str, Any] = {
            "user_id": name,
            "project": name,
            "department": name,
            "model": name,
            "model_version": name,
        }
        bills.add(date(2026, 11, 3), 10**12, **names)
        bills.write()
        text = as_text(told(connection, Selection(department=name)))
    assert max(map(len, text.splitlines())) <= 100
    assert "¥800,000,000.00" in text


def test_a_name_that_a_spreadsheet_would_compute_or_a_terminal_obey_stays_a_name(
    sqlite_ledger: Engine,
) -> None:
    with writing(sqlite_ledger) as connection:
        bills = Bills(connection)
        bills.close(date(2026, 11, 3))
        bills.add(date(2026, 11, 3), 1_000, model="=1+1", model_version='"\n\x1b[2J', project="a\nb")
        bills.write()
        found = told(connection)
    assert "\x1b" not in as_text(found)
    [row] = csv.DictReader(io.StringIO(as_csv(found).decode("utf-8-sig"), newline=""))
    assert row["model"] == "'=1+1"
    assert row["model_version"] == '"\n\x1b[2J'


def test_the_csv_has_every_row_with_its_terms_and_sums_to_the_statement(november: Connection) -> None:
    found = told(november)
    rows = list(csv.DictReader(io.StringIO(as_csv(found).decode("utf-8-sig"), newline="")))
    assert len(rows) == len(found.rows) + len(found.corrections)
    assert sum(Fraction(row["amount"] or 0) for row in rows) * 100 == found.amount_minor
    assert {row["usage_month"] for row in rows} == {"2026-10", "2026-11"}
    assert {row["amount"] for row in rows if not row["price_id"]} == {""}  # unrated, which is not free


def test_unrated_tokens_alone_make_a_statement_without_an_amount(sqlite_ledger: Engine) -> None:
    with writing(sqlite_ledger) as connection:
        bills = Bills(connection)
        bills.close(date(2026, 11, 3))
        bills.add(date(2026, 11, 3), 1_000, None)
        bills.write()
        text = as_text(told(connection))
    assert "unrated" in text
    assert "¥" not in text


def test_tokens_that_got_a_price_are_not_taken_from_others_without_one(sqlite_ledger: Engine) -> None:
    """In November 500 tokens got no price, and get one in December, when 500 others get none."""
    with writing(sqlite_ledger) as connection:
        bills = Bills(connection)
        first, then = date(2026, 11, 3), date(2026, 12, 4)
        bills.close(first, then)
        bills.add(first, 500, None)
        bills.add(then, -500, None, usage_day=first)
        bills.add(then, 500, usage_day=first, model="unpriced")
        bills.add(then, 500, None, project="ads")
        bills.add(then, 7, None, usage_day=date(2026, 11, 2))  # late, of a day before the price
        bills.write()
        now = datetime(2027, 1, 9, tzinfo=ZONE)
        november, december = (statement(connection, day, ZONE, now=now) for day in (first, then))
    assert [part.unrated_tokens for part in november.parts] == [500]
    assert [(part.project, part.unrated_tokens) for part in december.parts] == [("ads", 500), ("search", 7)]
    assert sum(each.tokens for each in december.unrated) == 507
    (total,) = [line for line in as_text(december).splitlines() if line.startswith("Total")]
    assert "507 tokens (507 unrated)" in total


@pytest.mark.parametrize("discount", ["0", "12.5"])
def test_large_amounts_of_a_currency_without_a_sign_stay_in_100_columns(
    sqlite_ledger: Engine, discount: str
) -> None:
    with writing(sqlite_ledger) as connection:
        bills = Bills(connection)
        bills.close(date(2026, 11, 3))
        bills.add(date(2026, 11, 3), 10**12, a_price(currency="KWD", input=Decimal(8)), discount=discount)
        bills.write()
        text = as_text(told(connection))
    amount = {"0": " 8,000,000,000.000 KWD", "12.5": " 12.5% 7,000,000,000.000 KWD"}[discount]
    (line,) = [line for line in text.splitlines() if "8/1,000" in line]
    assert line.endswith(amount)
    assert len(line) == 100
    assert max(map(len, text.splitlines())) == 100


def test_a_minimum_counts_requests(sqlite_ledger: Engine) -> None:
    with writing(sqlite_ledger) as connection:
        bills = Bills(connection)
        bills.close(date(2026, 11, 3))
        bills.minimum(date(2026, 11, 3), 12, 34)
        bills.write()
        text = as_text(told(connection))
    assert "12 requests" in text
    assert "¥0.34" in text


@pytest.mark.parametrize(
    ("day", "selection", "code"),
    [
        (date(2026, 9, 1), Selection(), "no_bills"),
        (NOVEMBER, Selection(user="nobody"), "no_bills"),
        (date(2027, 1, 1), Selection(), "period_in_future"),
    ],
)
def test_a_month_without_bills_is_told(
    november: Connection, day: date, selection: Selection, code: str
) -> None:
    with pytest.raises(BillingError) as told_error:
        told(november, selection, day)
    assert told_error.value.code == code


def test_the_command_line_tells_a_month(tmp_path: Path) -> None:
    url = billed_ledger(tmp_path, FLAT)
    env = {"TALLYBOOK_LEDGER_URL": url}
    shown = CliRunner().invoke(main, ["statement", "2020-01", "--user", "user-a"], env=env)
    assert shown.exit_code == 0, shown.output
    assert "¥4.00" in shown.output
    assert "final" in shown.output
    as_rows = CliRunner().invoke(main, ["statement", "2020-01", "--format", "csv"], env=env)
    assert "5000,0,0.80,1000,0,CNY,4.00" in as_rows.output
    none = CliRunner().invoke(main, ["statement", "2019-01"], env=env)
    assert none.exit_code == 1
    assert "no_bills" in none.output
