"""The one calendar: months of billing days, and days and their hours as half-open intervals of UTC."""

from __future__ import annotations

from datetime import date, datetime, time, timedelta, timezone, tzinfo
from typing import NamedTuple

ONE_DAY = timedelta(days=1)
ONE_HOUR = timedelta(hours=1)


class Interval(NamedTuple):
    """The instants from `start`, included, to `end`, excluded; both in UTC."""

    start: datetime
    end: datetime

    def __contains__(self, instant: object) -> bool:
        return isinstance(instant, datetime) and self.start <= instant < self.end


def day_interval(day: date, zone: tzinfo) -> Interval:
    """The UTC interval of a billing day: 23, 24 or 25 hours long, and empty if the zone skipped the day."""
    return Interval(_first_instant(day, zone), _first_instant(day + ONE_DAY, zone))


def billing_day(instant: datetime, zone: tzinfo) -> date:
    """The one day whose `day_interval` holds this instant."""
    day = instant.astimezone(zone).date()
    # A clock set back across midnight shows yesterday's date again after today has begun.
    return day + ONE_DAY if instant >= _first_instant(day + ONE_DAY, zone) else day


def billing_hour(instant: datetime, zone: tzinfo) -> datetime:
    """The start, in UTC, of the hour that holds this instant, hours being counted from the day's start.

    So every hour lies in one billing day, in zones with offsets of half an hour as well.
    """
    start = _first_instant(billing_day(instant, zone), zone)
    return start + (instant - start) // ONE_HOUR * ONE_HOUR


def month_start(day: date) -> date:
    """The first day of the day's calendar month."""
    return day.replace(day=1)


def next_month(day: date) -> date:
    """The first day of the calendar month after the day's."""
    return date(day.year + day.month // 12, day.month % 12 + 1, 1)


def month_days(day: date) -> list[date]:
    """Every day of the day's calendar month."""
    first = month_start(day)
    return [first + number * ONE_DAY for number in range((next_month(day) - first).days)]


def today(zone: tzinfo) -> date:
    """The billing day that is open now."""
    return billing_day(datetime.now(timezone.utc), zone)


def _first_instant(day: date, zone: tzinfo) -> datetime:
    return datetime.combine(day, time.min, tzinfo=zone).astimezone(timezone.utc)
