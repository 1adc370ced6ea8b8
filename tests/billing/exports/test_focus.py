from __future__ import annotations

import csv
import json
import re
import tracemalloc
from collections.abc import Iterator
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from sqlalchemy.engine import Connection, Engine

from billing.errors import BillingError
from billing.exports import closed_bills
from billing.exports.closed_bills import Exported, Period
from billing.exports.focus import COLUMNS
from billing.exports.focus_files import export_focus, rows_writer
from billing.ledger import reading, writing
from billing.money import to_decimal
from billing.selection import Selection
from billing.statements.statement import statement
from billing.tables import bill_lines
from tallybook.cli import main
from tests.billing.factories import ZONE, a_price
from tests.billing.focus_rules import RULES, Row, check
from tests.billing.generated_month import NOVEMBER
from tests.billing.hand_made import FLAT, Bills, billed_ledger, billed_minor

_MOMENT = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z")
_NUMBER = re.compile(r"-?\d+(\.\d+)?")  # of what NumericFormat allows, what is written here


def exported(connection: Connection, file: Path, days: Period) -> tuple[Exported, list[Row]]:
    """Write a file and read it back, null as None, numbers and moments as such."""
    with file.open("wb") as out:
        found = export_focus(connection, days, ZONE, "Example Ltd", rows_writer(file), out)
    return found, list(read(file))


def read(file: Path) -> Iterator[Row]:
    if file.suffix == ".parquet":
        yield from pq.read_table(file).to_pylist()
        return
    with file.open(encoding="utf-8", newline="") as lines:
        for cells in csv.DictReader(lines):
            row: Row = {}
            for column, kind in COLUMNS.items():
                text = cells[column]
                row[column] = text or None
                if text and kind == "decimal":
                    assert _NUMBER.fullmatch(text), (column, text)
                    row[column] = Decimal(text)
                elif text and kind == "time":
                    assert _MOMENT.fullmatch(text), (column, text)
                    row[column] = datetime.fromisoformat(text.replace("Z", "+00:00"))
            yield row


ALL = Period(date(2026, 11, 1), date(2026, 12, 31))
IN_PERIOD = bill_lines.c.day >= ALL.first


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_every_row_keeps_every_rule_and_their_costs_sum_to_the_lines(
    november: Connection, tmp_path: Path, ending: str
) -> None:
    found, rows = exported(november, tmp_path / f"focus.{ending}", ALL)
    check(rows)
    assert sum(row["BilledCost"] for row in rows) == to_decimal(billed_minor(november, IN_PERIOD), "CNY")
    rated = sa.and_(IN_PERIOD, bill_lines.c.price_id != "")
    unrated = sa.and_(IN_PERIOD, bill_lines.c.price_id == "")
    tokens = november.scalar(sa.select(sa.func.sum(bill_lines.c.quantity_tokens)).where(rated))
    assert sum(row["ConsumedQuantity"] or 0 for row in rows) == tokens
    count = sa.select(sa.func.count()).select_from(bill_lines)
    assert found.lines == len(rows) == november.scalar(count.where(rated))
    assert found.unrated_lines == november.scalar(count.where(unrated))
    assert {row["ChargeClass"] for row in rows} == {None, "Correction"}
    assert {row["ProviderName"] for row in rows} == {"Example Ltd"}


def test_the_rows_of_an_invoice_sum_to_the_departments_statement(
    november: Connection, tmp_path: Path
) -> None:
    _, rows = exported(november, tmp_path / "focus.csv", Period(NOVEMBER, date(2026, 11, 30)))
    later = datetime(2026, 12, 5, tzinfo=ZONE)
    for department in ("retail", "media"):
        told = statement(november, NOVEMBER, ZONE, Selection(department=department), later)
        costs = [row["BilledCost"] for row in rows if row["InvoiceId"] == told.id]
        assert sum(costs) == to_decimal(told.amount_minor, "CNY") > 0


def test_both_formats_say_the_same(november: Connection, tmp_path: Path) -> None:
    _, text = exported(november, tmp_path / "focus.csv", ALL)
    _, binary = exported(november, tmp_path / "focus.parquet", ALL)
    assert text == binary


def test_mandatory_columns_are_all_there_and_ours_come_after_them() -> None:
    names = list(COLUMNS)
    ours = [name for name in names if name.startswith("x_")]
    assert set(RULES) == set(names) - set(ours)
    assert names[-len(ours) :] == ours
    for name in names:  # ColumnHandling: Pascal case, letters and digits, 50 of them
        assert re.fullmatch(r"(x_)?([A-Z][a-z0-9]*)+", name), name
        assert len(name) <= 50


def test_a_line_is_told_in_full(sqlite_ledger: Engine, tmp_path: Path) -> None:
    price = a_price(per_tokens=1_000_000, input=Decimal("1.25"))
    with writing(sqlite_ledger) as connection:
        bills = Bills(connection)
        bills.close(date(2026, 11, 2), date(2026, 11, 3))
        bills.add(
            date(2026, 11, 3), 40_000, price, usage_day=date(2026, 11, 1), discount="20", model_label="canary"
        )
        bills.write()
        _, [row] = exported(connection, tmp_path / "focus.csv", ALL)
    month = (datetime(2026, 10, 31, 16, tzinfo=timezone.utc), datetime(2026, 11, 30, 16, tzinfo=timezone.utc))
    assert (row["BillingPeriodStart"], row["BillingPeriodEnd"]) == month
    assert row["ChargePeriodStart"] == month[0]
    assert row["ChargePeriodEnd"] == month[0] + timedelta(days=1)
    assert row["ChargeClass"] is None  # it corrects a day of the same billing period
    assert (row["PricingQuantity"], row["PricingUnit"]) == (Decimal("0.04"), "1000000 Tokens")
    assert (row["ListUnitPrice"], row["ContractedUnitPrice"]) == (Decimal("1.25"), Decimal(1))
    assert (row["ListCost"], row["ContractedCost"]) == (Decimal("0.05"), Decimal("0.04"))
    assert row["BilledCost"] == Decimal("0.04")
    assert (row["BillingAccountId"], row["SubAccountId"]) == ("retail", "search")
    assert row["InvoiceId"] == "2026-11/retail"
    assert json.loads(row["Tags"]) == {"tallybook:user": "user-a", "tallybook:label": "canary"}
    assert row["ChargeDescription"] == (
        "Input Tokens of review-sentiment 1 on 2026-11-01: 40000 at 1.25 CNY per 1000000, less 20%"
    )


def test_a_minimum_is_an_adjustment_without_a_quantity(sqlite_ledger: Engine, tmp_path: Path) -> None:
    with writing(sqlite_ledger) as connection:
        bills = Bills(connection)
        bills.close(date(2026, 11, 3))
        bills.minimum(date(2026, 11, 3), 12, 34)
        bills.write()
        _, rows = exported(connection, tmp_path / "focus.parquet", ALL)
    check(rows)
    [row] = [row for row in rows if row["ChargeCategory"] == "Adjustment"]
    assert row["BilledCost"] == Decimal("0.34")
    assert row["x_RequestQuantity"] == 12


def test_only_closed_bills_of_the_period_are_exported(sqlite_ledger: Engine, tmp_path: Path) -> None:
    with writing(sqlite_ledger) as connection:
        bills = Bills(connection)
        days = [date(2026, 10, n) for n in (1, 2, 3, 4)]
        bills.close(*days[:3])
        bills.close(days[3], state="draft")
        for day in days:
            bills.add(day, 1_000)
        bills.write()
        found, rows = exported(connection, tmp_path / "focus.csv", Period(days[1], days[3]))
    assert [row["x_BillDay"] for row in rows] == ["2026-10-02", "2026-10-03"]
    assert found.open_days == (days[3],)


HOSTILE = ["=1+1", "@cmd", "-2", "+3", 'a"b', "a\nb,c", "\t=1", "'", "检索", "\\", "x" * 128]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_hostile_names_stay_names(sqlite_ledger: Engine, tmp_path: Path, ending: str) -> None:
    with writing(sqlite_ledger) as connection:
        bills = Bills(connection)
        bills.close(date(2026, 11, 3))
        for name in HOSTILE:
            bills.add_all_named(date(2026, 11, 3), name)
        bills.write()
        _, rows = exported(connection, tmp_path / f"focus.{ending}", ALL)
    by_tag = {json.loads(row["Tags"])["tallybook:user"]: row for row in rows}
    assert set(by_tag) == set(HOSTILE)
    if ending == "parquet":
        assert [row["SubAccountId"] for row in by_tag.values()] == list(by_tag)
    else:
        texts = [v for row in rows for k, v in row.items() if COLUMNS[k] == "text" and v]
        assert not [text for text in texts if text.startswith(("=", "+", "-", "@", "\t"))]
        assert by_tag["=1+1"]["SubAccountId"] == "'=1+1"
        assert by_tag["a\nb,c"]["SubAccountId"] == "a\nb,c"


def test_numbers_are_refused_before_they_are_rounded(sqlite_ledger: Engine, tmp_path: Path) -> None:
    with writing(sqlite_ledger) as connection:
        bills = Bills(connection)
        bills.close(date(2026, 11, 3), date(2026, 11, 4))
        bills.add(
            date(2026, 11, 3),
            1,
            a_price(per_tokens=1_000_000, input=Decimal("0.123456789012")),
            discount="0.125",
        )
        bills.add(date(2026, 11, 4), 1_000, a_price(per_tokens=3))
        bills.write()
        first, second = (Period(day, day) for day in (date(2026, 11, 3), date(2026, 11, 4)))
        _, [row] = exported(connection, tmp_path / "focus.csv", first)
        assert row["ContractedUnitPrice"] == Decimal("0.123456789012") * Decimal("0.99875")
        for file, days in (("focus.parquet", first), ("focus.csv", second)):
            with pytest.raises(BillingError) as told:
                exported(connection, tmp_path / file, days)
            assert told.value.code == "inexact_decimal"


def test_memory_does_not_grow_with_the_period(sqlite_ledger: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closed_bills, "_BATCH_ROWS", 50)
    with writing(sqlite_ledger) as connection:
        bills = Bills(connection)
        bills.close(date(2026, 11, 3), date(2026, 11, 4))
        for user in range(100):
            bills.add(date(2026, 11, 3), 1_000, user_id=f"user-{user}")
        for user in range(1_000):
            bills.add(date(2026, 11, 4), 1_000, user_id=f"user-{user}")
        bills.write()
    peaks = []
    for day in (date(2026, 11, 3), date(2026, 11, 4)):
        with reading(sqlite_ledger) as connection, Path("/dev/null").open("wb") as out:
            tracemalloc.start()
            export_focus(connection, Period(day, day), ZONE, "Example Ltd", rows_writer(Path("x.csv")), out)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] < 2 * peaks[0]


def run(*arguments: str, url: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["export", *arguments], env={"TALLYBOOK_LEDGER_URL": url})
    return result.exit_code, result.output


def test_the_command_line_writes_a_file_or_says_why_not(tmp_path: Path) -> None:
    url = billed_ledger(tmp_path, FLAT, None)
    file = tmp_path / "new" / "focus.csv"
    days = ("--from", "2020-01-01", "--to", "2020-01-31")
    status, output = run("focus", *days, "--out", str(file), url=url)
    assert status == 0, output
    assert "1 lines" in output
    assert "1 unrated lines" in output
    assert sum(row["BilledCost"] for row in read(file)) == 4

    before = file.read_bytes()
    (tmp_path / "file").touch()
    for arguments, code in [
        ((*days, "--out", str(tmp_path / "focus.xlsx")), "export_format_unknown"),
        ((*days, "--out", str(tmp_path / "file" / "focus.csv")), "export_unwritable"),
        (("--from", "2019-01-01", "--to", "2019-01-31", "--out", str(file)), "no_bills"),
        (("--from", "2020-02-01", "--to", "2020-01-01", "--out", str(file)), "period_reversed"),
        (("--from", "2999-01-01", "--to", "2999-01-31", "--out", str(file)), "period_in_future"),
    ]:
        status, output = run("focus", *arguments, url=url)
        assert status == 1
        assert code in output
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]
