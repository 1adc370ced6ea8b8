from datetime import date, datetime, timedelta, timezone
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallybook.calendar import (
    ONE_DAY,
    ONE_HOUR,
    billing_day,
    billing_hour,
    day_interval,
    month_days,
    month_start,
    next_month,
)

ZONES = st.sampled_from(sorted(available_timezones())).map(ZoneInfo)
INSTANTS = st.integers(5 * 365 * 86_400, 66 * 365 * 86_400).map(  # 1975 to 2035
    lambda seconds: datetime.fromtimestamp(seconds, timezone.utc)
)


@given(INSTANTS, ZONES)
def test_every_instant_lies_in_the_interval_of_its_billing_day(instant: datetime, zone: ZoneInfo) -> None:
    assert instant in day_interval(billing_day(instant, zone), zone)


@given(st.dates(date(1975, 1, 2), date(2037, 1, 1)), ZONES)
def test_days_follow_each_other_without_gap_or_overlap(day: date, zone: ZoneInfo) -> None:
    assert day_interval(day - timedelta(days=1), zone).end == day_interval(day, zone).start


@given(INSTANTS, ZONES)
def test_an_hour_holds_its_instant_and_lies_in_one_day(instant: datetime, zone: ZoneInfo) -> None:
    hour = billing_hour(instant, zone)
    assert hour <= instant < hour + ONE_HOUR
    assert billing_day(hour, zone) == billing_day(instant, zone)


@given(st.dates(date(1900, 1, 1), date(2999, 12, 31)))
def test_the_next_month_begins_the_day_after_the_last_of_this_one(day: date) -> None:
    first = next_month(day)
    assert (first.day, first > day, (first - ONE_DAY).month) == (1, True, day.month)


@given(st.dates(date(1900, 1, 1), date(2999, 12, 31)))
def test_the_days_of_a_month_are_those_from_its_first_to_its_last(day: date) -> None:
    days = month_days(day)
    assert (days[0], days[-1] + ONE_DAY) == (month_start(day), next_month(day))
    assert day in days
    assert {each.month for each in days} == {day.month}
    assert len(set(days)) == len(days) == days[-1].day


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Asia/Shanghai", date(2026, 11, 22), 24),
        ("Europe/Berlin", date(2026, 3, 29), 23),
        ("Europe/Berlin", date(2026, 10, 25), 25),
        ("America/Havana", date(2026, 11, 1), 25),  # midnight comes twice
        ("Pacific/Apia", date(2011, 12, 30), 0),  # the day that Samoa skipped
        ("Australia/Lord_Howe", date(2026, 4, 5), 24.5),
    ],
)
def test_a_day_is_as_long_as_its_zone_says(zone: str, day: date, hours: float) -> None:
    interval = day_interval(day, ZoneInfo(zone))
    assert interval.end - interval.start == timedelta(hours=hours)


def test_the_first_instant_is_in_the_day_and_the_last_is_not() -> None:
    start, end = day_interval(date(2026, 11, 22), ZoneInfo("Asia/Shanghai"))
    assert start == datetime(2026, 11, 21, 16, tzinfo=timezone.utc)
    assert billing_day(start, ZoneInfo("Asia/Shanghai")) == date(2026, 11, 22)
    assert billing_day(end, ZoneInfo("Asia/Shanghai")) == date(2026, 11, 23)


def test_hours_of_a_half_hour_zone_begin_with_its_day() -> None:
    kolkata = ZoneInfo("Asia/Kolkata")
    assert billing_hour(datetime(2026, 11, 22, 0, 10, tzinfo=kolkata), kolkata) == datetime(
        2026, 11, 21, 18, 30, tzinfo=timezone.utc
    )
