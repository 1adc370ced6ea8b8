"""A canary beside the stable version: what the ledger's events say of each, and whether that will do."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction
from typing import Any

import sqlalchemy as sa

from billing.tables import usage_events

STABLE, CANARY = "stable", "canary"
_SLOW = Fraction(95, 100)  # the percentile by which latencies are compared


@dataclass(frozen=True)
class Side:
    """What one label's requests came to. `seconds`: the 95th percentile of durations; None: no request."""

    requests: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float | None = None

    @property
    def error_share(self) -> Fraction:
        """Failed requests of all; 0 of none."""
        return Fraction(self.errors, self.requests) if self.requests else Fraction(0)

    @property
    def tokens_per_request(self) -> Fraction:
        """Billed tokens of a request on average; 0 of none."""
        total = self.prompt_tokens + self.completion_tokens
        return Fraction(total, self.requests) if self.requests else Fraction(0)


@dataclass(frozen=True)
class Limits:
    """How much worse than the stable version a canary may be, and how many requests of each must say so."""

    requests: int = 200
    error_points: Fraction = Fraction(1, 100)
    slower: Fraction = Fraction(3, 2)
    more_tokens: Fraction = Fraction(5, 4)


@dataclass(frozen=True)
class Verdict:
    """`passed` None: too few requests to tell. `reasons`: each comparison in a sentence."""

    passed: bool | None
    reasons: tuple[str, ...]


def compare(connection: sa.Connection, model: str, version: str, since: datetime) -> tuple[Side, Side]:
    """The stable side and that of the canary `version`, from the events since this moment.

    Another canary's events of before do not count; stable ones count of whatever version.
    """
    canary = sa.and_(usage_events.c.model_label == CANARY, usage_events.c.model_version == version)
    return (
        _side(connection, model, usage_events.c.model_label == STABLE, since),
        _side(connection, model, canary, since),
    )


def judge(stable: Side, canary: Side, limits: Limits) -> Verdict:
    """Whether the canary may become the stable version."""
    least = limits.requests
    if min(stable.requests, canary.requests) < least:
        few = f"{canary.requests} requests of the canary and {stable.requests} of the stable version"
        return Verdict(None, (f"{few}; {least} of each are needed to compare",))
    checks = [
        (
            canary.error_share <= stable.error_share + limits.error_points,
            f"errors {_percent(canary.error_share)} against {_percent(stable.error_share)}, "
            f"at most {_percent(limits.error_points)} more",
        ),
        (
            (canary.seconds or 0.0) <= (stable.seconds or 0.0) * float(limits.slower),
            f"95% within {_milliseconds(canary)} against {_milliseconds(stable)}, "
            f"at most {float(limits.slower):g} times",
        ),
        (
            canary.tokens_per_request <= stable.tokens_per_request * limits.more_tokens,
            f"{float(canary.tokens_per_request):.1f} tokens a request against "
            f"{float(stable.tokens_per_request):.1f}, at most {float(limits.more_tokens):g} times",
        ),
    ]
    told = tuple(f"{'good' if good else 'WORSE'}: {sentence}" for good, sentence in checks)
    return Verdict(all(good for good, _ in checks), told)


def _side(connection: sa.Connection, model: str, which: sa.ColumnElement[bool], since: datetime) -> Side:
    columns = usage_events.c
    # The day spares PostgreSQL all older partitions; any time zone is within one of UTC.
    since_day = (since - timedelta(days=1)).date()
    of_it = sa.and_(columns.day >= since_day, columns.time >= since, columns.model == model, which)
    failed = sa.func.sum(sa.case((columns.status >= 500, 1), else_=0))
    query = sa.select(
        sa.func.count(), failed, sa.func.sum(columns.prompt_tokens), sa.func.sum(columns.completion_tokens)
    ).where(of_it)
    requests, *sums = connection.execute(query).one()
    errors, prompt, completion = (int(value or 0) for value in sums)
    place = max(0, -(-requests * _SLOW.numerator // _SLOW.denominator) - 1)  # the nearest rank
    slow: Any = connection.scalar(
        sa.select(columns.duration_seconds)
        .where(of_it)
        .order_by(columns.duration_seconds)
        .limit(1)
        .offset(place)
    )
    return Side(requests, errors, prompt, completion, None if slow is None else float(slow))


def _percent(share: Fraction) -> str:
    return f"{float(share):.1%}"


def _milliseconds(side: Side) -> str:
    return "—" if side.seconds is None else f"{side.seconds * 1_000:.0f} ms"
