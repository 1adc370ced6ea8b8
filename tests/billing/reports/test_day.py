from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import Engine

from billing.errors import LedgerError
from billing.ledger import reading, writing
from billing.prices.departments import DepartmentRule
from billing.prices.tariff import Tariff
from billing.reports.day import Correction, OpenDay, day_report
from billing.reports.driver import Change
from billing.reports.trend import TrendDay
from billing.tables import bill_lines, event_batches, usage_hours
from billing.totals import Part, Totals
from tallybook.usage import UsageEvent
from tests.billing.days import at, bring, close, draft, report
from tests.billing.factories import DAY, a_price, an_event

BEFORE = DAY - timedelta(days=1)
NEXT = DAY + timedelta(days=1)


def on(day: date, *, hour: int = 12, **changes: object) -> UsageEvent:
    return an_event(time=at(day, hour), **changes)


def names(parts: tuple[Part, ...]) -> list[str]:
    return [part.name for part in parts]


def test_a_day_without_anything_is_reported_as_empty(ledger: Engine) -> None:
    empty = report(ledger, DAY)
    assert empty.is_empty
    assert (empty.total, empty.before, empty.driver) == (Totals(), None, None)
    assert (empty.token_change, empty.cost_change) == (None, None)
    assert empty.state == "unbilled"
    assert empty.trend == (TrendDay(DAY, 0, None),)
    assert len(empty.hours) == 24


def test_totals_are_the_aggregates_tokens_and_the_bills_amount(ledger: Engine) -> None:
    bring(ledger, [an_event(), an_event(cached_tokens=40), an_event(user="user-b", prompt_tokens=7)])
    close(ledger, DAY)
    total = report(ledger, DAY).total
    assert total == Totals(
        requests=3,
        prompt_tokens=207,
        cached_tokens=40,
        completion_tokens=60,
        # user-a: 160 input 0.128, 40 cached 0.008, 40 output 0.096; user-b: 7 input 0.0056, 20 output 0.048
        amount_minor=13 + 1 + 10 + 1 + 5,
        currency="CNY",
    )
    assert total.total_tokens == 267
    assert total.tokens_per_request == 89


def test_a_draft_and_an_early_close_say_so(ledger: Engine) -> None:
    bring(ledger, [an_event(time=at(DAY, 12))])
    assert report(ledger, DAY).total.amount_minor is None
    draft(ledger, DAY)
    assert (report(ledger, DAY).state, report(ledger, DAY).closed_at) == ("draft", None)
    close(ledger, DAY, early=True)
    closed = report(ledger, DAY)
    assert (closed.state, closed.early, closed.closed_at) == ("closed", True, at(DAY, 12, 30))


def test_the_day_before_is_compared_in_tokens_and_money(ledger: Engine) -> None:
    bring(ledger, [on(BEFORE), on(DAY), on(DAY)])
    close(ledger, BEFORE)
    close(ledger, DAY)
    told = report(ledger, DAY)
    assert told.token_change == Change(120, 240)
    # 100 input 0.08 and 20 output 0.048, then 200 and 40: 60 output tokens of the month are 0.144
    assert told.cost_change == Change(8 + 5, 16 + 9)
    assert told.cost_change.percent == Decimal(1200) / 13


def test_hours_are_those_of_the_billing_time_zone(ledger: Engine) -> None:
    bring(ledger, [on(DAY, hour=0), on(DAY, hour=23), on(DAY, hour=23)])
    hours = report(ledger, DAY).hours
    assert [hour.start.hour for hour in hours] == list(range(24))
    assert {
        h.start.hour: (h.requests, h.prompt_tokens, h.completion_tokens) for h in hours if h.requests
    } == {
        0: (1, 100, 20),
        23: (2, 200, 40),
    }


@pytest.mark.parametrize(
    ("zone", "day", "clock"),
    [
        ("Europe/Berlin", date(2026, 3, 29), [0, 1, *range(3, 24)]),
        ("Europe/Berlin", date(2026, 10, 25), [0, 1, 2, 2, *range(3, 24)]),
        ("Australia/Lord_Howe", date(2026, 4, 5), [*range(24), 23]),  # 24 hours and a half
    ],
)
def test_days_of_odd_length_have_all_their_hours(
    sqlite_ledger: Engine, zone: str, day: date, clock: list[int]
) -> None:
    with reading(sqlite_ledger) as connection:
        hours = day_report(connection, day, ZoneInfo(zone)).hours
    if zone != "Australia/Lord_Howe":
        assert [hour.start.hour for hour in hours] == clock
    assert len(hours) == len(clock)


def test_parts_by_every_dimension_sum_to_the_total(ledger: Engine) -> None:
    bring(
        ledger,
        [
            on(DAY, user=f"u{n % 5}", project=f"p{n % 3}", department=f"d{n % 2}", model_version=str(n % 4))
            for n in range(60)
        ],
    )
    close(ledger, DAY)
    told = report(ledger, DAY)
    for parts, count in ((told.users, 5), (told.projects, 3), (told.departments, 2), (told.models, 4)):
        assert len(parts) == count
        for name in ("requests", "prompt_tokens", "completion_tokens", "amount_minor"):
            assert sum(getattr(p.totals, name) for p in parts) == getattr(told.total, name)
    assert names(told.models) == [f"review-sentiment {version}" for version in "0123"]


def test_the_ten_users_with_most_tokens_come_first_and_the_rest_is_kept(ledger: Engine) -> None:
    bring(ledger, [on(DAY, user=f"u{n:02}", prompt_tokens=100 + n) for n in range(13)])
    told = report(ledger, DAY)
    assert names(told.top_users) == [f"u{n:02}" for n in range(12, 2, -1)]
    assert names(told.other_users) == ["u02", "u01", "u00"]


def test_a_report_of_one_user_holds_nothing_of_the_others(ledger: Engine) -> None:
    bring(ledger, [on(BEFORE), on(BEFORE, user="user-b"), b"no event"])
    close(ledger, BEFORE)
    bring(ledger, [on(day, user="user-b") for day in (BEFORE, DAY)])
    bring(ledger, [on(day) for day in (BEFORE - timedelta(days=1), DAY)])
    close(ledger, DAY)
    first, second = report(ledger, DAY, "user-a"), report(ledger, DAY, "user-b")
    assert names(first.users) == ["user-a"]
    assert sum(hour.requests for hour in first.hours) == 1
    assert (first.corrections, len(second.corrections)) == ((), 1)
    assert (first.total.amount_minor, second.total.amount_minor) == (13, 25)
    assert first.before == Totals(
        requests=1, prompt_tokens=100, completion_tokens=20, amount_minor=13, currency="CNY"
    )
    assert first.trend[1:] == (TrendDay(BEFORE, 120, 13, 1), TrendDay(DAY, 120, 13, 1))
    assert (len(first.open_days), len(second.open_days)) == (1, 0)
    everyone = report(ledger, DAY)
    assert (everyone.set_aside_events, first.set_aside_events) == (1, None)


def test_late_events_are_told_as_corrections_and_counted_in_the_bills_amount_only(ledger: Engine) -> None:
    bring(ledger, [on(BEFORE)])
    close(ledger, BEFORE)
    bring(ledger, [on(BEFORE, user="late"), on(DAY)])
    close(ledger, DAY)
    told = report(ledger, DAY)
    assert told.corrections == (Correction(BEFORE, "late", "search", 120, 0, 13),)
    assert (told.total.amount_minor, told.total.corrections_minor, told.total.own_minor) == (26, 13, 13)
    assert told.total.total_tokens == 120
    late = next(part for part in told.users if part.name == "late")
    assert (late.totals.requests, late.totals.amount_minor) == (0, 13)


def test_tokens_without_a_price_are_unrated_and_not_free(ledger: Engine) -> None:
    bring(ledger, [on(DAY), on(DAY, model="new-model")])
    close(ledger, DAY)
    told = report(ledger, DAY)
    assert (told.total.unrated_tokens, told.total.amount_minor) == (120, 13)
    assert names(told.unrated_models) == ["new-model 1"]
    assert told.unrated_models[0].totals.amount_minor is None


def test_tokens_that_get_a_price_later_are_corrections_and_no_longer_unrated(ledger: Engine) -> None:
    bring(ledger, [on(BEFORE, model="new-model"), on(DAY, model="new-model")])
    close(ledger, BEFORE)
    close(ledger, DAY, [a_price(), a_price(model="new-model", effective_from=BEFORE)])
    told = report(ledger, DAY)
    assert told.total.unrated_tokens == 0
    assert told.corrections == (Correction(BEFORE, "user-a", "search", 0, -120, 13),)


def test_earlier_days_with_usage_on_no_closed_bill_are_named(ledger: Engine) -> None:
    bring(ledger, [on(BEFORE), on(DAY), on(NEXT)])
    draft(ledger, BEFORE)
    close(ledger, DAY)
    assert report(ledger, DAY).open_days == (OpenDay(BEFORE, 120),)


def test_the_trend_has_no_gaps_and_at_most_thirty_days(ledger: Engine) -> None:
    bring(ledger, [on(DAY - timedelta(days=ago)) for ago in (40, 29, 2, 0)] + [on(NEXT)])
    close(ledger, DAY)
    trend = report(ledger, DAY).trend
    assert [entry.day for entry in trend] == [DAY - timedelta(days=ago) for ago in range(29, -1, -1)]
    assert {entry.day: entry.total_tokens for entry in trend if entry.total_tokens} == {
        DAY - timedelta(days=29): 120,
        DAY - timedelta(days=2): 120,
        DAY: 120,
    }
    assert trend[-1] == TrendDay(DAY, 120, 13, 1)


def test_the_driver_is_the_user_whose_requests_multiplied(ledger: Engine) -> None:
    bring(ledger, [on(BEFORE, user=f"u{n}") for n in range(5)])
    bring(ledger, [on(DAY, user=f"u{n}") for n in range(5)] + [on(DAY, user="u3") for _ in range(9)])
    close(ledger, BEFORE)
    close(ledger, DAY)
    driver = report(ledger, DAY).driver
    assert driver is not None
    assert (driver.measure, driver.dimension, driver.name, driver.cause) == ("amount", "user", "u3", "volume")
    assert driver.percent_of_whole == 100
    assert (driver.before.requests, driver.now.requests) == (1, 10)


def test_lines_in_two_currencies_are_not_added(ledger: Engine) -> None:
    bring(ledger, [on(DAY), on(DAY, user="user-b")])
    draft(ledger, DAY)
    with writing(ledger) as connection:
        connection.execute(bill_lines.update().where(bill_lines.c.user_id == "user-b").values(currency="USD"))
    with pytest.raises(LedgerError) as error:
        report(ledger, DAY)
    assert error.value.code == "currencies_mixed"


REST = {"model_label": "", "latency_class": "standard", "context_band": 0, "status": 200}


def test_sums_beyond_what_a_float_can_hold_are_exact(ledger: Engine) -> None:
    huge = 2**53 + 1
    with writing(ledger) as connection:
        row = {"day": DAY, "hour": at(DAY, 8), "project": "p", "department": "d", "model": "m"} | REST
        counts = {"requests": 1, "prompt_tokens": huge, "cached_tokens": 0, "completion_tokens": 0}
        rows = [{**row, **counts, "model_version": "1", "user_id": user} for user in ("a", "b")]
        connection.execute(usage_hours.insert(), rows)
    total = report(ledger, DAY).total
    assert total.prompt_tokens == 2 * huge
    assert isinstance(total.prompt_tokens, int)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.sampled_from("xy"),
            st.sampled_from("12"),
            st.integers(0, 23),
            st.integers(1, 10**6),
            st.integers(0, 10**6),
        ),
        max_size=12,
        unique_by=lambda row: row[:4],
    )
)
def test_hours_trend_and_every_dimension_tell_the_same_tokens(
    sqlite_ledger: Engine, rows: list[tuple[str, str, str, int, int, int]]
) -> None:
    with writing(sqlite_ledger) as connection:
        connection.execute(sa.delete(usage_hours))
        for user, project, version, hour, prompt, completion in rows:
            connection.execute(
                usage_hours.insert().values(
                    day=DAY, hour=at(DAY, hour), user_id=user, project=project, department="d", model="m",
                    model_version=version, requests=1, prompt_tokens=prompt, cached_tokens=0,
                    completion_tokens=completion, **REST,
                )
            )  # fmt: skip
        connection.execute(sa.delete(event_batches))
        connection.execute(
            event_batches.insert().values(
                id=1, day=DAY, bill_day=DAY, segment="x", offset_bytes=0, requests=len(rows),
                prompt_tokens=sum(row[4] for row in rows), cached_tokens=0,
                completion_tokens=sum(row[5] for row in rows), events_root=b"",
                rolled_up=True,
            )
        )  # fmt: skip
    told = report(sqlite_ledger, DAY)
    expected = sum(row[4] + row[5] for row in rows)
    assert told.total.total_tokens == expected
    assert sum(hour.prompt_tokens + hour.completion_tokens for hour in told.hours) == expected
    assert told.trend[-1].total_tokens == expected
    for parts in (told.users, told.projects, told.departments, told.models):
        assert sum(part.totals.total_tokens for part in parts) == expected


def test_a_departments_tokens_and_amounts_are_those_that_a_rule_assigns(ledger: Engine) -> None:
    bring(ledger, [on(DAY), on(DAY, user="user-b", department="sales"), on(DAY, user="user-c")])
    rules = (DepartmentRule("user-a", None, "sales", DAY),)
    close(ledger, DAY, tariff=Tariff((a_price(),), rules=rules))
    found = {part.name: part.totals for part in report(ledger, DAY).departments}
    assert {name: (t.total_tokens, t.amount_minor) for name, t in found.items()} == {
        "sales": (240, 26),
        "retail": (120, 13),
    }
