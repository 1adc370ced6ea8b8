"""A rule held against history: what it would have raised, day by day, and what it should have."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import get_args

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing.alerts.baseline import WEEKS, judge
from billing.alerts.rules import WINDOW, strange_networks, surge_rule
from billing.day_sums import KINDS, Kind, history
from billing.errors import AlertError
from billing.settings import BillingSettings
from billing.tables import usage_hours
from tallybook.calendar import ONE_DAY

_MONTH_DAYS = 30.44
RULES = ("surge of a user", "surge of a project", "surge of a model", "unusual address")
_KIND_OF = dict(zip(RULES, ("user", "project", "model", "address"), strict=True))


@dataclass(frozen=True, slots=True)
class Alarm:
    """What a rule would have raised: of days in a row, the first."""

    rule: str
    name: str
    first: date
    last: date
    told: str


@dataclass(frozen=True, slots=True)
class Planted:
    """Something unusual that is known to have happened."""

    kind: str
    name: str
    first: date
    last: date


@dataclass(frozen=True)
class Score:
    """How a rule did. `follows`: alarms of what is a part of something planted, or holds it."""

    rule: str
    planted: list[Planted]
    missed: list[Planted]
    alarms: list[Alarm]
    follows: list[Alarm]
    false: list[Alarm]
    days: int

    @property
    def precision(self) -> float | None:
        """The part of the alarms that something planted is behind."""
        return 1 - len(self.false) / len(self.alarms) if self.alarms else None

    @property
    def recall(self) -> float | None:
        """The part of what was planted that was found."""
        return 1 - len(self.missed) / len(self.planted) if self.planted else None

    @property
    def false_a_month(self) -> float:
        """False alarms in a month of average length."""
        return len(self.false) / max(self.days, 1) * _MONTH_DAYS


def raised(connection: Connection, settings: BillingSettings, first: date, last: date) -> list[Alarm]:
    """What the rules would have raised from `first` to `last`; `sum_days` must have been called.

    The days before `first` are the history that the first ones are held against.
    """
    found: list[Alarm] = []
    for rule_name, kind in _KIND_OF.items():
        days: dict[str, list[tuple[date, str]]] = {}
        told: Iterable[tuple[str, date, str]]
        if kind == "address":
            told = _strangers(connection, settings, first, last)
        else:
            told = _surges(connection, settings, _kind(kind), first, last)
        for name, day, text in told:
            days.setdefault(name, []).append((day, text))
        for name, each in sorted(days.items()):
            found += _in_a_row(rule_name, name, each)
    return sorted(found, key=lambda alarm: (alarm.first, alarm.rule, alarm.name))


def score(
    connection: Connection, alarms: Sequence[Alarm], planted: Sequence[Planted], first: date, last: date
) -> list[Score]:
    """Hold alarms against what was planted between these days.

    An alarm is explained by something planted on its days that it names, or that it shares usage with: the
    project of a user that surged, and the users of a project that did.
    """
    there = [each for each in planted if first <= each.last and each.first <= last]
    days = (last - first).days + 1
    scores = []
    for rule, kind in _KIND_OF.items():
        own = [each for each in there if each.kind == kind]
        mine = [alarm for alarm in alarms if alarm.rule == rule]
        found = {each for each in own if any(_names(alarm, each) for alarm in mine)}
        rest = [alarm for alarm in mine if not any(_names(alarm, each) for each in own)]
        follows = [
            alarm
            for alarm in rest
            if any(_overlap(alarm, each) and _shared(connection, alarm, kind, each) for each in there)
        ]
        false = [alarm for alarm in rest if alarm not in follows]
        missed = [each for each in own if each not in found]
        scores.append(Score(rule, own, missed, mine, follows, false, days))
    return scores


def read_truth(file: Path) -> list[Planted]:
    """Read what was planted, as `tallybook simulate` writes it.

    Raises: AlertError: no such file, or it says something else (code truth_invalid).
    """
    try:
        told = json.loads(file.read_text("utf-8"))
        return [
            Planted(each["kind"], each["name"], *(date.fromisoformat(each[n]) for n in ("first", "last")))
            for each in told["planted"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AlertError("truth_invalid", f"{file}: {type(error).__name__}: {error}") from error


def _surges(
    connection: Connection, settings: BillingSettings, kind: Kind, first: date, last: date
) -> Iterable[tuple[str, date, str]]:
    told = history(connection, kind, first - WINDOW, last)
    rule = surge_rule(settings, kind)
    for place in range(WEEKS * 7, len(told.days)):
        before, now = told.tokens[:, place - WEEKS * 7 : place], told.tokens[:, place]
        judged = judge(before, now, rule)
        for row in np.flatnonzero(judged.surges):
            baseline = round(float(judged.baseline[row]))
            yield told.names[row], told.days[place], f"{now[row]:,} tokens, usually {baseline:,}"


def _strangers(
    connection: Connection, settings: BillingSettings, first: date, last: date
) -> Iterable[tuple[str, date, str]]:
    for number in range((last - first).days + 1):
        day = first + number * ONE_DAY
        for user, networks, requests in strange_networks(connection, day, settings):
            yield user, day, f"{requests:,} requests from {', '.join(networks)}"


def _in_a_row(rule: str, name: str, days: Sequence[tuple[date, str]]) -> list[Alarm]:
    found: list[Alarm] = []
    for day, told in days:
        if found and found[-1].last == day - ONE_DAY:
            found[-1] = Alarm(rule, name, found[-1].first, day, found[-1].told)
        else:
            found.append(Alarm(rule, name, day, day, told))
    return found


def _names(alarm: Alarm, planted: Planted) -> bool:
    return alarm.name == planted.name and _overlap(alarm, planted)


def _overlap(alarm: Alarm, planted: Planted) -> bool:
    return alarm.first <= planted.last and planted.first <= alarm.last


def _shared(connection: Connection, alarm: Alarm, kind: str, planted: Planted) -> bool:
    """Whether the alarm's subject and what was planted have usage in common on those days."""
    if kind == "address":
        return False
    # What a copied key asked for is usage of its user.
    source = KINDS[_kind("user" if planted.kind == "address" else planted.kind)]
    days = usage_hours.c.day.between(max(alarm.first, planted.first), min(alarm.last, planted.last))
    both = sa.exists().where(days, KINDS[_kind(kind)] == alarm.name, source == planted.name)
    return bool(connection.scalar(sa.select(both)))


def _kind(name: str) -> Kind:
    kind: Kind = next(each for each in get_args(Kind) if each == name)
    return kind
