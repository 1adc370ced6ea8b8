"""Did the upgrade pay? Tokens, answer times, cost and quality of a model's versions, side by side."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing import money
from billing.aggregates import whole
from billing.errors import VersionsError
from billing.tables import bill_lines, usage_events, usage_hours
from billing.text_table import text_table

_HEADINGS = [
    "version", "days", "requests", "failed", "tokens each", "median s", "95% s", "cost/1,000", "quality",
]  # fmt: skip
_REFUSED = 400  # from this status on, a request was not served
_NOTHING = Fraction(1, 100)  # a difference of less is none
_QUALITY = Fraction(1, 2)  # and of less than half a point in a metric


@dataclass(frozen=True, slots=True)
class VersionUse:
    """What a version did in the days looked at; seconds are of answered requests, None without any.

    `amount_minor` is billed and drafted, None when nothing of it has a price, and `rated_tokens` are those
    that it is for: the others have no price, or no bill yet. `quality` is a metric of the model card from 0
    to 1, None when there is no card that says.
    """

    version: str
    labels: tuple[str, ...]
    first: date
    last: date
    requests: int
    failed: int
    prompt_tokens: int
    completion_tokens: int
    median_seconds: float | None
    slow_seconds: float | None  # nineteen of twenty are faster
    amount_minor: int | None
    rated_tokens: int
    currency: str | None
    quality: Fraction | None

    @property
    def answered(self) -> int:
        """Requests that were served."""
        return self.requests - self.failed

    @property
    def tokens(self) -> int:
        """In and out."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def cost(self) -> Fraction | None:
        """What a request costs in minor units, tokens without an amount taken to cost what the others do."""
        if self.amount_minor is None or not self.rated_tokens or not self.answered:
            return None
        return Fraction(self.amount_minor * self.tokens, self.rated_tokens * self.answered)


class Change(NamedTuple):
    """How the newer of two versions differs: a part of the older's value; quality in points."""

    what: str
    by: Fraction
    better: bool
    matters: bool


def version_report(
    connection: Connection, model: str, models_dir: Path, first: date, last: date
) -> list[VersionUse]:
    """A model's versions in the order in which they began to serve.

    Raises: VersionsError: nobody used the model in these days (code model_unused).
    """
    hours = usage_hours.c
    days = sa.and_(hours.model == model, hours.day.between(first, last))
    failed = sa.case((hours.status >= _REFUSED, hours.requests), else_=0)
    counts = (hours.requests, failed, hours.prompt_tokens, hours.completion_tokens)
    sums = [whole(sa.func.sum(count)) for count in counts]
    query = sa.select(hours.model_version, sa.func.min(hours.day), sa.func.max(hours.day), *sums).where(days)
    rows = connection.execute(query.group_by(hours.model_version)).all()
    if not rows:
        raise VersionsError("model_unused", f"nobody used {model} from {first} to {last}")
    labels: dict[str, list[str]] = {}
    for version, label in connection.execute(
        sa.select(hours.model_version, hours.model_label).where(days).distinct()
    ):
        labels.setdefault(version, []).append(label or "-")
    seconds = _seconds(connection, model, first, last)
    amounts = _amounts(connection, model, first, last)
    found: list[VersionUse] = []
    for version, began, ended, requests, refused, prompt, completion in rows:
        median, slow = seconds.get(version, (None, None))
        amount, rated, currency = amounts.get(version, (None, 0, None))
        quality = quality_of(models_dir / model / version)
        found.append(
            VersionUse(
                version, tuple(sorted(labels[version])), began, ended, requests, refused, prompt, completion,
                median, slow, amount, rated, currency, quality,
            )
        )  # fmt: skip
    return sorted(found, key=lambda use: (use.first, use.version))


def compared(old: VersionUse, new: VersionUse) -> list[Change]:
    """What of the newer version is better or worse, where both are known."""
    changes: list[Change] = []

    def add(what: str, before: Fraction | None, after: Fraction | None) -> None:
        if before and after is not None:
            by = after / before - 1
            changes.append(Change(what, by, by < 0, abs(by) >= _NOTHING))

    if old.currency == new.currency:
        add("cost a request", old.cost, new.cost)
    add("tokens a request", _each_tokens(old), _each_tokens(new))
    add("median answer time", _fraction(old.median_seconds), _fraction(new.median_seconds))
    if old.quality is not None and new.quality is not None:
        points = 100 * (new.quality - old.quality)
        changes.append(Change("quality", points, points > 0, abs(points) >= _QUALITY))
    return changes


def verdict(changes: list[Change]) -> str:
    """In a sentence, whether the newer version paid: by cost, answer time and quality."""
    weighed = [c for c in changes if c.what != "tokens a request"]
    if not weighed:
        return "Whether it paid can't be told."
    counted = [c for c in weighed if c.matters]
    better = [c.what for c in counted if c.better]
    worse = [c.what for c in counted if not c.better]
    if not counted:
        return "No difference that matters."
    if not worse:
        return f"It paid: better in {', '.join(better)}, worse in nothing."
    if not better:
        return f"It did not pay: worse in {', '.join(worse)}, better in nothing."
    return f"It depends: better in {', '.join(better)}; worse in {', '.join(worse)}."


def tell_versions(model: str, uses: list[VersionUse], first: date, last: date) -> str:
    """The versions as text, and each against the one before."""
    rows = [_HEADINGS, *(_row(use) for use in uses)]
    lines = [f"Versions of {model}, {first} to {last}.", "", *text_table(rows)]
    for old, new in pairwise(uses):
        changes = compared(old, new)
        told = ", ".join(f"{c.what} {_signed(c)}" for c in changes) or "nothing is known of both"
        lines += ["", f"{new.version} against {old.version}: {told}.", verdict(changes)]
    lines += [
        "",
        "Each over the days on which it served: who asked, and what for, may have changed as well. Cost:",
        "billed and drafted, of answered requests. Quality: accuracy that the model card tells, if one does.",
        *(
            f"Of version {use.version}, {use.rated_tokens:,} of {use.tokens:,} tokens have an amount; the "
            "others are taken to cost as much."
            for use in uses
            if use.cost is not None and use.rated_tokens != use.tokens
        ),
    ]
    return "\n".join(lines)


def _row(use: VersionUse) -> list[str]:
    return [
        f"{use.version} ({', '.join(use.labels)})",
        f"{use.first:%m-%d}…{use.last:%m-%d}",
        f"{use.requests:,}",
        f"{money.shown(Fraction(100 * use.failed, use.requests), 2)}%",
        _shown(_each_tokens(use), 1),
        _shown(_fraction(use.median_seconds), 3),
        _shown(_fraction(use.slow_seconds), 3),
        _cost(use),
        "-" if use.quality is None else f"{money.shown(100 * use.quality, 2)}%",
    ]


def quality_of(version_dir: Path) -> Fraction | None:
    """The accuracy on held-out data that a version's card tells, from 0 to 1; None: no card, or none told."""
    try:
        card = json.loads((version_dir / "assets.extra" / "model_card.json").read_text("utf-8"))
        value = card["metrics"]["test"]["accuracy"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Fraction(str(value)) if type(value) in (int, float) and 0 <= value <= 1 else None


def _seconds(connection: Connection, model: str, first: date, last: date) -> dict[str, tuple[float, float]]:
    """Median and 95th percentile of the answer times, as both databases can tell them."""
    event = usage_events.c
    version = event.model_version
    place = sa.func.row_number().over(partition_by=version, order_by=event.duration_seconds)
    asked = (
        sa.select(
            version,
            event.duration_seconds.label("seconds"),
            place.label("place"),
            sa.func.count().over(partition_by=version).label("count"),
        )
        .where(event.model == model, event.day.between(first, last), event.status < _REFUSED)
        .subquery()
    )

    def percentile(percent: int) -> sa.ColumnElement[Any]:
        return sa.func.min(sa.case((asked.c.place * 100 >= asked.c.count * percent, asked.c.seconds)))

    query = sa.select(asked.c.model_version, percentile(50), percentile(95)).group_by(asked.c.model_version)
    return {version: (median, slow) for version, median, slow in connection.execute(query)}


def _amounts(connection: Connection, model: str, first: date, last: date) -> dict[str, tuple[int, int, str]]:
    line = bill_lines.c
    sums = [whole(sa.func.sum(each)) for each in (line.amount_minor, line.quantity_tokens)]
    query = (
        sa.select(line.model_version, *sums, sa.func.min(line.currency))
        .where(line.model == model, line.usage_day.between(first, last), line.amount_minor.is_not(None))
        .group_by(line.model_version)
        .having(sa.func.min(line.currency) == sa.func.max(line.currency))
    )
    return {version: (*sums, currency) for version, *sums, currency in connection.execute(query)}


def _each_tokens(use: VersionUse) -> Fraction | None:
    return Fraction(use.tokens, use.answered) if use.answered else None


def _fraction(value: float | None) -> Fraction | None:
    return None if value is None else Fraction(value)


def _shown(value: Fraction | None, places: int) -> str:
    return "-" if value is None else f"{money.shown(value, places):,}"


def _cost(use: VersionUse) -> str:
    if use.cost is None or use.currency is None:
        return "-"
    return money.format_amount(int(money.shown(1000 * use.cost, 0)), use.currency)


def _signed(change: Change) -> str:
    if change.what == "quality":
        return f"{money.shown(change.by, 2):+} points"
    return f"{money.shown(100 * change.by, 1):+}%"
