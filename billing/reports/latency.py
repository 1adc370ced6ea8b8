"""How long answers of a day took, hour by hour: the median, and what one in twenty took longer than."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import date, datetime, tzinfo
from itertools import pairwise

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing.tables import usage_events

# Seconds; counted in classes, since no database sorts a million durations for nothing. Each is a third wider
# than the one below, and within a class a quantile is taken to lie in proportion.
BOUNDS = tuple(round(0.001 * 1.33**number, 6) for number in range(44))  # up to 209 s
_FAILED = 400


@dataclass(frozen=True, slots=True)
class Latency:
    """Of the answers of one hour, in seconds; `start` is in the billing time zone."""

    start: datetime
    median_seconds: float
    slow_seconds: float  # the 95th percentile


def day_latency(connection: Connection, day: date, zone: tzinfo) -> tuple[Latency, ...]:
    """The hours that have answers; none when the day's events were dropped. Failed requests don't count."""
    seconds = usage_events.c.duration_seconds
    klass: sa.ColumnElement[int]
    if connection.dialect.name == "postgresql":
        klass = sa.func.width_bucket(seconds, sa.literal(list(BOUNDS), sa.ARRAY(sa.Double)))
    else:
        klass = sa.case(*((seconds < bound, place) for place, bound in enumerate(BOUNDS)), else_=len(BOUNDS))
    query = sa.select(usage_events.c.hour, klass.label("class"), sa.func.count())
    query = query.where(usage_events.c.day == day, usage_events.c.status < _FAILED)
    counts: dict[datetime, dict[int, int]] = defaultdict(dict)
    for hour, place, count in connection.execute(query.group_by(usage_events.c.hour, sa.text("2"))):
        counts[hour][place] = count
    return tuple(
        Latency(hour.astimezone(zone), quantile(counts[hour], 0.5), quantile(counts[hour], 0.95))
        for hour in sorted(counts)
    )


def quantile(counts: dict[int, int], share: float) -> float:
    """The seconds that this share of the answers stayed below; `counts` by the number of their class."""
    edges = list(pairwise([0.0, *BOUNDS, BOUNDS[-1]]))
    wanted, below = share * sum(counts.values()), 0
    for place in sorted(counts):
        if below + counts[place] >= wanted:
            low, high = edges[place]
            return low + (high - low) * (wanted - below) / counts[place]
        below += counts[place]
    return edges[-1][1]
