"""Budgets in numbers: what is spent, how near it is, and where the month is heading."""

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import orjson
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.engine import Engine

from billing.budgets import Budget, BudgetList, read_budgets, spent
from billing.budgets_report import MonthBudgets, month_budgets, record_budgets, tell_budgets
from billing.errors import BudgetsError, LedgerError
from billing.ledger import reading, writing
from billing.tables import audit_records, event_batches
from tests.billing.factories import ZONE
from tests.billing.single_lines import put_bill_day, put_line

MONTH = date(2026, 11, 1)
NOW = datetime(2026, 11, 11, 12, tzinfo=ZONE)  # ten days are over
SEARCH = Budget("project", "search", MONTH, 100_00)

GOOD = """
currency = "CNY"

[[budgets]]
project = "search"
effective_from = "2026-11"
amount = "100.00"

[[budgets]]
department = "retail"
effective_from = "2026-01"
amount = "5000"
"""


def days(*amounts: int) -> dict[date, int]:
    return {MONTH + timedelta(number): amount for number, amount in enumerate(amounts)}


@pytest.mark.parametrize(
    ("billed", "percent", "state"),
    [
        (0, 0, "under"), (-500, -5, "under"), (7999, 79.99, "under"), (8000, 80, "near"),
        (10_000, 100, "near"), (10_001, 100.01, "over"),
    ],
)  # fmt: skip
def test_a_budget_is_near_at_80_percent_and_over_above_all_of_it(
    billed: int, percent: float, state: str
) -> None:
    found = spent(SEARCH, days(billed), 30, 30)
    assert found.percent is not None
    assert float(found.percent) == percent
    assert (found.state, found.billed_minor) == (state, billed)


def test_a_budget_of_nothing_is_over_with_the_first_amount() -> None:
    nothing = Budget("project", "search", MONTH, 0)
    assert (spent(nothing, {}, 30, 1).state, spent(nothing, days(1), 30, 1).state) == ("under", "over")
    assert spent(nothing, days(1), 30, 1).percent is None


@pytest.mark.parametrize(
    ("amounts", "days_over", "projected"),
    [
        ((), 0, None),
        ((50,), 0, None),  # the first day is not over: nothing to go by
        ((100, 200, 60), 2, 4500),  # the third day's draft tells nothing of a day
        ((100,), 3, 1000),  # two days without usage are days all the same
        ((1,), 7, 4),  # 30/7 = 4.28…
        ((1, 2), 20, 5),  # 4.5, half up
        ((10, 1000), 1, 1010),  # never less than what is billed
        ((-30,), 1, -30),
        ((7,) * 30, 30, 210),
    ],
)
def test_a_projection_is_the_billed_per_day_over_times_the_days_of_the_month(
    amounts: tuple[int, ...], days_over: int, projected: int | None
) -> None:
    assert spent(SEARCH, days(*amounts), 30, days_over).projected_minor == projected


@given(st.lists(st.integers(-(10**9), 10**12), max_size=30), st.integers(0, 30))
def test_what_is_billed_is_whole_and_the_projection_covers_it(amounts: list[int], days_over: int) -> None:
    found = spent(SEARCH, days(*amounts), 30, days_over)
    assert found.billed_minor == sum(amounts)
    if days_over:
        assert found.projected_minor is not None
        assert found.projected_minor >= found.billed_minor
    else:
        assert found.projected_minor is None


def written(folder: Path, text: str) -> Path:
    file = folder / "budgets.toml"
    file.write_text(text, "utf-8")
    return file


def test_a_budget_holds_from_its_month_until_a_later_one_takes_over(tmp_path: Path) -> None:
    later = GOOD[GOOD.index("[[budgets]]") :].replace("2026-11", "2027-01").replace("2026-01", "2025-12")
    listed = read_budgets(written(tmp_path, GOOD + later.replace('"100.00"', '"0.01"')))
    retail = Budget("department", "retail", date(2026, 1, 1), 5000_00)
    assert listed.in_force(date(2026, 11, 1)) == [SEARCH, retail]
    assert listed.in_force(date(2026, 10, 1)) == [retail]
    assert [b.amount_minor for b in listed.in_force(date(2027, 1, 1))] == [1, 5000_00]
    assert listed.in_force(date(2025, 11, 1)) == []


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"100.00"', "100.00", "amount in quotes"),
        ('"100.00"', '"100.001"', "finer than CNY has units"),
        ('"100.00"', '"-1"', "without a sign"),
        ('"2026-11"', '"2026-13"', "must be a month"),
        ('"2026-11"', "2026-11-01", "must be a month"),
        ('project = "search"', 'project = "search"\ndepartment = "x"', "of a project or of a department"),
        ('project = "search"\n', "", "of a project or of a department"),
        ("amount", "ammount", "unknown ammount"),
        (
            'department = "retail"\neffective_from = "2026-01"',
            'project = "search"\neffective_from = "2026-11"',
            "a second budget of project search",
        ),
        ('"CNY"', '"XYZ"', "unknown currency"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_the_file_is_refused_with_its_place(
    tmp_path: Path, old: str, new: str, told: str
) -> None:
    assert old in GOOD
    with pytest.raises(BudgetsError, match=told) as caught:
        read_budgets(written(tmp_path, GOOD.replace(old, new, 1)))
    assert caught.value.code == "budgets_invalid"


def test_a_month_is_what_closed_and_draft_lines_bill_for_its_usage(ledger: Engine, tmp_path: Path) -> None:
    listed = read_budgets(written(tmp_path, GOOD))
    second, draft, next_month = date(2026, 11, 2), date(2026, 11, 11), date(2026, 12, 1)
    with writing(ledger) as connection:
        for day in (MONTH, second, next_month):
            put_bill_day(connection, day)
        put_bill_day(connection, draft, "draft")
        put_line(connection, MONTH, 10_00, quantity_tokens=100)
        put_line(connection, MONTH, 99_00, usage_day=date(2026, 10, 31))  # October's, on November's bill
        put_line(connection, second, 20_00, project="chat", quantity_tokens=200)
        put_line(connection, second, None, quantity_tokens=7, direction="output")
        put_line(connection, draft, 5_00, quantity_tokens=50)
        put_line(connection, next_month, 3_00, usage_day=MONTH, quantity_tokens=30)  # a correction
        connection.execute(
            event_batches.insert().values(_batch(day=MONTH, prompt_tokens=387, completion_tokens=13))
        )
        found = month_budgets(connection, listed, MONTH, ZONE, NOW)
    assert (found.days, found.days_over) == (30, 10)
    project, department = found.spent
    assert (project.billed_minor, department.billed_minor) == (18_00, 38_00)
    assert project.projected_minor == 13_00 * 3
    assert (found.unrated_tokens, found.unbilled_tokens) == (7, 400 - 387)
    told = tell_budgets(found).splitlines()
    assert told[3].split() == ["project", "search", "100.00", "18.00", "18.0%", "39.00", "under"]
    assert all(len(line) <= 100 for line in told)


def _batch(**changes: Any) -> dict[str, Any]:
    required = [column for column in event_batches.c if not column.nullable and not column.primary_key]
    values: dict[type, Any] = {sa.BigInteger: 0, sa.Text: "", sa.LargeBinary: b"", sa.Boolean: True}
    return {c.name: values.get(type(c.type), NOW.astimezone(timezone.utc)) for c in required} | changes


def test_other_currencies_are_not_compared(sqlite_ledger: Engine, tmp_path: Path) -> None:
    with writing(sqlite_ledger) as connection:
        put_bill_day(connection, MONTH)
        put_line(connection, MONTH, 1, currency="USD")
        with pytest.raises(LedgerError) as caught:
            month_budgets(connection, read_budgets(written(tmp_path, GOOD)), MONTH, ZONE, NOW)
    assert caught.value.code == "currencies_mixed"


def test_a_name_of_any_length_fits_the_terminal() -> None:
    budget = Budget("department", "d" * 128, MONTH, 10**11)
    told = tell_budgets(MonthBudgets(MONTH, "CNY", 30, 1, (spent(budget, days(10**11), 30, 1),), 0, 0))
    assert max(map(len, told.splitlines())) <= 100


def test_changes_of_the_budgets_are_recorded_in_the_audit_chain_and_repetition_is_not(
    ledger: Engine, tmp_path: Path
) -> None:
    listed = read_budgets(written(tmp_path, GOOD))
    changed = BudgetList("CNY", (SEARCH,))
    for budgets, recorded in ((listed, True), (listed, False), (changed, True), (listed, True)):
        with writing(ledger) as connection:
            assert record_budgets(connection, budgets, NOW) is recorded
    with reading(ledger) as connection:
        rows = connection.execute(sa.select(audit_records.c.kind, audit_records.c.body)).all()
    assert [row.kind for row in rows] == ["budgets"] * 3
    assert [len(orjson.loads(row.body)["budgets"]) for row in rows] == [2, 1, 2]
