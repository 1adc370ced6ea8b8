"""Reports made by hand, for tests of what is made of a report."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

from billing.closure import Proof
from billing.reports.day import DayReport, Hour
from billing.reports.trend import TrendDay
from billing.totals import Part, Totals
from tallybook.calendar import ONE_DAY, ONE_HOUR, day_interval
from tests.billing.factories import AFTER, DAY, ZONE

BEFORE = DAY - ONE_DAY


def some(tokens: int = 1200, minor: int | None = 1234, requests: int = 10, **changes: Any) -> Totals:
    """Totals of `tokens`, a sixth of them completion, at `minor` fen."""
    values: dict[str, Any] = {
        "requests": requests,
        "prompt_tokens": tokens - tokens // 6,
        "completion_tokens": tokens // 6,
        "amount_minor": minor,
        "currency": None if minor is None else "CNY",
    }
    return Totals(**(values | changes))


def a_report(total: Totals | None = None, **changes: Any) -> DayReport:
    """The closed day DAY of one user, project, department and model, unless changed."""
    total = total or some()
    start = day_interval(DAY, ZONE).start
    hours = [Hour((start + number * ONE_HOUR).astimezone(ZONE)) for number in range(24)]
    hours[9] = Hour(hours[9].start, total.requests, total.prompt_tokens, total.completion_tokens)
    values: dict[str, Any] = {
        "day": DAY,
        "time_zone": "Asia/Shanghai",
        "user": None,
        "state": "closed",
        "early": False,
        "closed_at": AFTER,
        "currency": total.currency,
        "total": total,
        "before": None,
        "driver": None,
        "hours": tuple(hours),
        "trend": (TrendDay(DAY, total.total_tokens, total.amount_minor),),
        "users": (Part(("user-a",), total),),
        "projects": (Part(("search",), total),),
        "departments": (Part(("retail",), total),),
        "models": (Part(("review-sentiment", "1"), total),),
        "corrections": (),
        "open_days": (),
        "set_aside_events": 0,
    }
    return DayReport(**(values | changes))


def an_empty_report(**changes: Any) -> DayReport:
    """A day without anything."""
    nothing: dict[str, Any] = {
        "total": Totals(), "users": (), "projects": (), "departments": (), "models": ()
    }  # fmt: skip
    return a_report(**(nothing | changes))


def a_trend(days: int, tokens: int = 1000, minor: int | None = 1000) -> tuple[TrendDay, ...]:
    """As many days up to DAY."""
    first: date = DAY - timedelta(days=days - 1)
    return tuple(TrendDay(first + timedelta(days=n), tokens + n, minor) for n in range(days))


def a_proof(**changes: Any) -> Proof:
    """What closing DAY has proven."""
    values: dict[str, Any] = {
        "day": DAY,
        "requests": 10,
        "event_tokens": 1200,
        "aggregate_tokens": 1200,
        "line_tokens": 1200,
        "unrated_tokens": 0,
        "amount_minor": 1234,
        "currency": "CNY",
        "corrected_days": (),
    }
    return Proof(**(values | changes))
