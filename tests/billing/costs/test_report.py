"""Cost recovery through the real ledger: events, lines and trainings in, the report as it is read."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy.engine import Engine

from billing.aggregates import roll_up
from billing.costs.file import CostList, Pool
from billing.costs.recovery import PoolRecovery, Recovery, Sums
from billing.costs.report import CostsReport, costs_report, days_of
from billing.costs.text import tell_costs
from billing.errors import DayError, LedgerError
from billing.ingest import ingest
from billing.ledger import open_ledger, reading, writing
from billing.tables import training_runs
from tests.billing.factories import AFTER, DAY, NOON, ZONE, an_event, write_segment
from tests.billing.single_lines import put_bill_day, put_line

COSTS = CostList(
    "CNY",
    [Pool("gpu", DAY, 2, Decimal("12.50"), ("review-sentiment",), {"review-sentiment": Decimal("0.125")})],
)


def put_run(ledger: Engine, run_id: str, time: datetime, price: str | None = "6.00", **changes: str) -> None:
    row = {
        "id": run_id, "time": time, "model": "review-sentiment", "model_version": "1", "device": "cpu",
        "device_seconds": "60", "wall_seconds": "1800", "examples": 1, "code_version": "x",
        "pool_price_per_hour": price, "currency": price and "CNY", "content_sha256": b"", "imported_at": time,
    }  # fmt: skip
    with writing(ledger) as connection:
        connection.execute(training_runs.insert().values(**(row | changes)))


def test_a_day_is_told_as_it_was(ledger: Engine, tmp_path: Path) -> None:
    """5,400 tokens at 0.125 a second keep the pool busy for half of the day."""
    events = [
        an_event(prompt_tokens=4000, completion_tokens=1000),
        an_event(prompt_tokens=300, completion_tokens=100),
    ]
    elsewhere = an_event(model="chat", prompt_tokens=7, completion_tokens=0)
    write_segment(tmp_path, [*events, elsewhere, an_event(time=NOON + timedelta(days=1))])
    ingest(ledger, tmp_path, ZONE)
    put_run(ledger, "1", NOON)
    put_run(ledger, "2", NOON, price=None)
    put_run(ledger, "3", NOON + timedelta(days=1))
    with writing(ledger) as connection:
        roll_up(connection)
        put_bill_day(connection, DAY)
        put_bill_day(connection, DAY + timedelta(1), "draft")
        put_line(connection, DAY, 700_00, quantity_tokens=4000)
        put_line(connection, DAY, None, quantity_tokens=100, direction="output")
        put_line(connection, DAY + timedelta(1), 50_00, usage_day=DAY, quantity_tokens=300)
    with reading(ledger) as connection:
        report = costs_report(connection, COSTS, DAY.isoformat(), ZONE, AFTER)
    [pool] = report.pools
    assert pool.whole.sums == Sums(
        tokens=5400, unrated_tokens=100, unbilled_tokens=1000, billed=Fraction(750), draft=Fraction(50),
        runs=2, unknown_runs=1, training_cost=Fraction(3),
    )  # fmt: skip
    assert pool.utilisation == Fraction(1, 2)
    assert report.elsewhere["chat"].sums.tokens == 7
    assert tell_costs(report).splitlines() == [
        "Cost recovery of 2026-11-21 in CNY: 24.00 hours, until 2026-11-22 00:00 in the billing time zone.",
        "",
        "Pool gpu: 48.00 device hours in 24.00 hours",
        "  pool cost    600.00",
        "  of it idle   300.00",
        "  training     3.00",
        "  billed       750.00",
        "  margin       147.00  (19.6% of billed)",
        "  tokens       5,400",
        "  utilisation  50.0%",
        "  unit cost    111.111111",
        "  break-even   111.666667",
        "  Of the billed, 50.00 is on drafts, not on closed bills.",
        "  100 tokens have no price, and are billed at nothing yet.",
        "  1,000 tokens are on no bill yet, nor on a draft.",
        "  1 of 2 trainings have no known cost in this currency: left out.",
        "                    tokens    cost  billed  margin   unit cost  break-even",
        "  review-sentiment   5,400  600.00  750.00  147.00  111.111111  111.666667",
        "  Trainings of review-sentiment: 1 for 3.00, 1 of unknown cost",
        "",
        "Served or trained outside the pools of the costs file:",
        "        tokens     cost  billed   margin  unit cost  break-even",
        "  chat       7  unknown    0.00  unknown          -           -",
        "  7 tokens are on no bill yet, nor on a draft.",
        "",
        "Unit cost: pool cost per 1,000 tokens. Break-even: the price that covers trainings too.",
        "Margin: billed less both. Trainings count in the period in which they ended.",
    ]


@pytest.mark.parametrize(
    ("period", "hours"),
    [
        ("2026-03-29", 23),
        ("2026-10-25", 25),
        ("2026-03", 31 * 24 - 1),
        ("2026-10", 31 * 24 + 1),
        ("2026-02", 672),
    ],
)
def test_a_period_has_the_hours_of_the_calendar(tmp_path: Path, period: str, hours: int) -> None:
    zone = ZoneInfo("Europe/Berlin")
    ledger = open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}", zone.key)
    costs = CostList("EUR", [Pool("cpu", date(2026, 1, 1), 1, Decimal(1), ("reviews",))])
    with reading(ledger) as connection:
        [pool] = costs_report(connection, costs, period, zone, datetime(2027, 1, 1, tzinfo=zone)).pools
    assert pool.whole.cost == pool.device_hours == hours


def test_an_unfinished_period_is_told_up_to_now_and_one_to_come_is_refused(sqlite_ledger: Engine) -> None:
    with reading(sqlite_ledger) as connection:
        [pool] = costs_report(connection, COSTS, "2026-11", ZONE, NOON).pools
        assert pool.device_hours == 24  # two devices from midnight of DAY, when they were bought, to noon
        with pytest.raises(DayError, match="2026-12 has not begun"):
            costs_report(connection, COSTS, "2026-12", ZONE, NOON)


def test_bills_in_another_currency_are_not_compared(sqlite_ledger: Engine) -> None:
    with writing(sqlite_ledger) as connection:
        put_bill_day(connection, DAY)
        put_line(connection, DAY, 1, currency="USD")
        with pytest.raises(LedgerError, match="can't be compared"):
            costs_report(connection, COSTS, DAY.isoformat(), ZONE, AFTER)


def test_days_of_a_period() -> None:
    assert days_of("2026-02-28") == [date(2026, 2, 28)]
    assert [len(days_of(month)) for month in ("2026-02", "2028-02", "2026-12")] == [28, 29, 31]
    for wrong in ("2026", "2026-13", "2026-02-30", "", "2026-1"):
        with pytest.raises(ValueError, match=r"."):
            days_of(wrong)


def test_unknowns_are_named_and_the_widest_report_fits_the_terminal() -> None:
    names = ["m" * 128, "short"]
    sums = Sums(tokens=98_765_432_101, billed=Fraction(123_456_789), runs=1, training_cost=Fraction(1, 3))
    models = {name: Recovery(sums, None) for name in names}
    pool = PoolRecovery(
        "gpu", Fraction(86_400), Fraction(48), Recovery(sums, Fraction(10**8)), models, None, ("short",)
    )
    told = tell_costs(CostsReport("2026-11", "CNY", AFTER, Fraction(86_400), [pool], {})).splitlines()
    assert "  utilisation  unknown: no capacity given for short" in told
    assert "  of it idle   unknown" in told
    table = [line for line in told if line.startswith(("  mmm", "  short"))]
    assert len(table) == 2
    assert max(map(len, table)) <= 100
