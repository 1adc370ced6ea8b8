"""What was metered against what the model servers counted themselves, by model and hour."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, tzinfo
from itertools import pairwise
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing.aggregates import whole
from billing.reconciliation.counters import COMPLETION_TOKENS, PROMPT_TOKENS, REQUESTS, UP
from billing.tables import counter_samples, usage_hours
from tallybook.calendar import ONE_HOUR, Interval, day_interval

TOKENS = "tokens"
_SUMMED = {REQUESTS: (REQUESTS,), TOKENS: (PROMPT_TOKENS, COMPLETION_TOKENS)}
_REFUSED = 400  # from this status on, a request was not served


class Sample(NamedTuple):
    """What a server had counted of a model since it started; see `billing.reconciliation.counters`."""

    server: str
    sampled_at: datetime
    model: str
    counter: str
    value: int


@dataclass(frozen=True, slots=True)
class Served:
    """What servers counted in a time: at least `least`, and at most `most`, if samples say so."""

    least: int
    most: int | None

    def __add__(self, other: Served) -> Served:
        most = None if self.most is None or other.most is None else self.most + other.most
        return Served(self.least + other.least, most)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A count of ours against the servers'; `served` None: no server counts this."""

    metered: int
    served: Served | None


@dataclass(frozen=True, slots=True)
class Row:
    """One model in one hour, or in the whole day."""

    model: str
    span: Interval
    requests: Comparison
    tokens: Comparison


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """A billing day: each model's hours, each model's whole day, and how often no sample could be had."""

    hours: list[Row]
    days: list[Row]
    failed_samples: int


Metered = Mapping[tuple[str, datetime], tuple[int, int]]  # requests and tokens by model and start of the hour


def reconcile_day(
    connection: Connection, day: date, zone: tzinfo, until: datetime | None = None
) -> Reconciliation:
    """Reconcile a billing day with the samples in it, the last before it and the first after it.

    Samples after `until`, from when on events may be missing, are left out.
    """
    span = day_interval(day, zone)
    samples = [s for s in _samples(connection, span) if until is None or s.sampled_at <= until]
    return reconcile(span, samples, _metered(connection, day))


def reconcile(span: Interval, samples: Sequence[Sample], metered: Metered) -> Reconciliation:
    """Reconcile the hours of a time, and all of it."""
    servers = _servers(samples)
    models = sorted({model for model, _ in metered} | {s.model for s in samples if s.counter != UP})
    starts = [span.start + n * ONE_HOUR for n in range(-((span.start - span.end) // ONE_HOUR))]
    hours, days = [], []
    for model in models:
        counts = [metered.get((model, start), (0, 0)) for start in starts]
        for start, count in zip(starts, counts, strict=True):
            hours.append(_row(model, Interval(start, min(start + ONE_HOUR, span.end)), count, servers))
        requests, tokens = (sum(each) for each in zip(*counts, strict=True))
        days.append(_row(model, span, (requests, tokens), servers))
    failed = sum(s.counter == UP and not s.value and s.sampled_at in span for s in samples)
    return Reconciliation(hours, days, failed)


def served_in(span: Interval, values: Sequence[tuple[datetime, int]]) -> Served:
    """What one server counted in a time, out of what it had counted at these moments, in their order.

    An increase between two samples in the time belongs to it. One between a sample before its start and one
    after it, or likewise at its end, may belong to it: it is in `most` only. Where a sample before or after
    is missing, or the server started anew between two of them, there was perhaps more: `most` is None.
    A value below the one before it counts from zero.
    """
    least = most = 0
    certain = bool(values) and values[0][0] <= span.start and values[-1][0] >= span.end
    for (began, before), (ended, after) in pairwise(values):
        if ended <= span.start or began >= span.end:
            continue
        restarted = after < before
        increase = after if restarted else after - before
        certain = certain and not restarted
        most += increase
        if span.start <= began and ended <= span.end:
            least += increase
    return Served(least, most if certain else None)


_History = dict[tuple[str, str], list[tuple[datetime, int]]]  # of a server: values by model and counter


def _row(model: str, span: Interval, metered: tuple[int, int], servers: Iterable[_History]) -> Row:
    requests, tokens = (
        Comparison(count, _served(model, counter, span, servers))
        for counter, count in zip((REQUESTS, TOKENS), metered, strict=True)
    )
    return Row(model, span, requests, tokens)


def _served(model: str, counter: str, span: Interval, servers: Iterable[_History]) -> Served | None:
    counted = [served_in(span, server[model, counter]) for server in servers if (model, counter) in server]
    return sum(counted, Served(0, 0)) if counted else None


def _servers(samples: Iterable[Sample]) -> list[_History]:
    """Each server's values at every moment when it answered; what it did not tell of was zero."""
    moments: dict[str, dict[datetime, dict[tuple[str, str], int]]] = defaultdict(dict)
    for sample in samples:
        if sample.counter == UP and sample.value:
            moments[sample.server].setdefault(sample.sampled_at, {})
    for sample in samples:
        at = moments[sample.server].get(sample.sampled_at)
        for name, summed in _SUMMED.items():
            if at is not None and sample.counter in summed:
                at[sample.model, name] = at.get((sample.model, name), 0) + sample.value
    histories: list[_History] = []
    for answered in moments.values():
        keys = {key for values in answered.values() for key in values}
        histories.append(
            {key: [(moment, answered[moment].get(key, 0)) for moment in sorted(answered)] for key in keys}
        )
    return histories


def _samples(connection: Connection, span: Interval) -> list[Sample]:
    """Those of servers that were looked at in the time, or both before and after it: it served meanwhile."""
    table = counter_samples.c
    servers = sa.select(table.server, sa.func.min(table.sampled_at)).where(table.sampled_at >= span.start)
    found: list[Sample] = []
    for server, since in connection.execute(servers.group_by(table.server)).all():
        up = sa.and_(table.server == server, table.counter == UP, table.value == 1)
        before = sa.select(sa.func.max(table.sampled_at)).where(up, table.sampled_at < span.start)
        after = sa.select(sa.func.min(table.sampled_at)).where(up, table.sampled_at >= span.end)
        first, last = connection.scalar(before), connection.scalar(after)
        if since >= span.end and first is None:
            continue
        query = sa.select(*[table[name] for name in Sample._fields]).where(
            table.server == server,
            table.sampled_at >= (first or span.start),
            table.sampled_at <= (last or span.end),
        )
        found += [Sample(*row) for row in connection.execute(query)]
    return found


def _metered(connection: Connection, day: date) -> Metered:
    served = sa.case((usage_hours.c.status < _REFUSED, usage_hours.c.requests), else_=0)
    tokens = usage_hours.c.prompt_tokens + usage_hours.c.completion_tokens
    query = (
        sa.select(
            usage_hours.c.model, usage_hours.c.hour, whole(sa.func.sum(served)), whole(sa.func.sum(tokens))
        )
        .where(usage_hours.c.day == day)
        .group_by(usage_hours.c.model, usage_hours.c.hour)
    )
    return {(model, hour): (requests, count) for model, hour, requests, count in connection.execute(query)}
