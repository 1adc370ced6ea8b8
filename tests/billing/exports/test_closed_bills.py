from __future__ import annotations

import io
from datetime import date, datetime, timedelta
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.engine import Connection, Engine

from billing.errors import BillingError
from billing.exports.beancount import write_beancount
from billing.exports.closed_bills import (
    Period,
    exact_decimal,
    export_file,
    harmless,
    month_of,
    open_days,
    period,
    told_days,
)
from billing.exports.focus_files import export_focus, rows_writer
from billing.ledger import open_ledger, reading, writing
from billing.statements.statement import statement
from billing.statements.text import as_text
from tests.billing.conftest import TIME_ZONE
from tests.billing.days import bring
from tests.billing.factories import DAY, NOON, ZONE, an_event
from tests.billing.generated_month import NOVEMBER, bill_november
from tests.billing.hand_made import Bills

LATER = datetime(2026, 12, 31, 12, tzinfo=ZONE)


def everything(connection: Connection) -> list[bytes]:
    """A month in every format that is text."""
    month = month_of(NOVEMBER, ZONE, LATER)
    focus, beancount = io.BytesIO(), io.BytesIO()
    export_focus(connection, month, ZONE, "Example Ltd", rows_writer(Path("focus.csv")), focus)
    write_beancount(connection, month, ZONE, beancount)
    told = as_text(statement(connection, NOVEMBER, ZONE, now=LATER)).encode()
    return [told, focus.getvalue(), beancount.getvalue()]


def test_both_databases_export_the_same_bytes(
    november: Connection, postgres_url: str, tmp_path: Path
) -> None:
    ledger = open_ledger(postgres_url, TIME_ZONE)
    bill_november(ledger, tmp_path / "journal")
    with reading(ledger) as connection:
        on_postgresql = everything(connection)
    ledger.dispose()
    assert on_postgresql == everything(november)
    assert [len(text) > 2_000 for text in on_postgresql] == [True] * 3


def test_a_day_is_open_while_it_is_used_and_not_closed_or_not_over(ledger: Engine) -> None:
    bring(ledger, [an_event()])
    days = Period(DAY - timedelta(days=2), DAY + timedelta(days=2))
    with writing(ledger) as connection:
        assert open_days(connection, days, ZONE, LATER) == [DAY]
        assert open_days(connection, days, ZONE, NOON) == [DAY, *days.days[3:]]
        bills = Bills(connection)
        bills.close(DAY)
        bills.close(DAY - timedelta(days=1), state="draft")
        assert open_days(connection, days, ZONE, LATER) == [DAY - timedelta(days=1)]


def test_a_month_is_its_days_and_has_begun_at_its_first_midnight() -> None:
    assert month_of(date(2028, 2, 29), ZONE, datetime(2029, 1, 1, tzinfo=ZONE)).last == date(2028, 2, 29)
    midnight = datetime(2026, 12, 1, tzinfo=ZONE)
    assert month_of(date(2026, 12, 9), ZONE, midnight).first == date(2026, 12, 1)
    with pytest.raises(BillingError, match="has not begun"):
        month_of(date(2026, 12, 9), ZONE, midnight - timedelta(seconds=1))


def test_a_period_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(BillingError) as told:
        period(DAY, DAY - timedelta(days=1), ZONE, LATER)
    assert told.value.code == "period_reversed"


def test_runs_of_days_are_told_as_such() -> None:
    days = [date(2026, 11, n) for n in (1, 3, 4, 5, 30)]
    assert told_days(days) == "2026-11-01, 2026-11-03 to 2026-11-05, 2026-11-30"


@given(st.decimals(allow_nan=False, allow_infinity=False, places=12, min_value=0, max_value=10**9))
def test_a_decimal_comes_back_with_every_digit(value: object) -> None:
    assert Fraction(exact_decimal(Fraction(str(value)))) == Fraction(str(value))


def test_a_third_is_refused() -> None:
    with pytest.raises(BillingError) as told:
        exact_decimal(Fraction(1, 3))
    assert told.value.code == "inexact_decimal"


@pytest.mark.parametrize(("text", "cell"), [("=1", "'=1"), ("-a", "'-a"), ("\t=", "'\t="), ("a=", "a=")])
def test_a_cell_is_no_formula(text: str, cell: str) -> None:
    assert harmless(text) == cell


def test_a_file_that_fails_half_way_is_left_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "export.csv"
    file.write_text("before")

    def fail_half_way() -> None:
        with export_file(file) as out:
            out.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]
