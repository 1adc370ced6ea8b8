"""What may be wrong with usage and its billing: each rule looks, and says what it found."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, tzinfo
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing import money
from billing.aggregates import prove_hours, whole
from billing.alerts.baseline import WEEKS, SurgeRule, judge
from billing.alerts.quota_limits import PROJECT_MONTH, USER_DAY, quota_limits
from billing.alerts.tables import alert_episodes, network_days
from billing.budgets import read_budgets
from billing.budgets_report import month_budgets
from billing.closure import prove
from billing.day_sums import Kind, history
from billing.errors import BudgetsError, ClosureError
from billing.owing import CLOSED
from billing.prices.book import kept_tariff
from billing.prices.file import read_tariff
from billing.reconciliation.metered import reconcile_day
from billing.settings import BillingSettings
from billing.tables import bill_days, event_batches, journal_offsets, usage_hours
from tallybook.calendar import ONE_DAY, billing_day, day_interval, month_start
from tallybook.unread import Unread, unread

WINDOW = WEEKS * 7 * ONE_DAY
_LATE_EVENTS = timedelta(
    hours=6
)  # after its end a day may still become a surge, and is not yet expected closed
_PERCENTS = (100, 80, 50)
_QUOTA_PERCENTS = (100, 80)
_PROJECT_AFTER_DAYS = 5  # of a month: before, a projection is mostly chance
_NAMED = 5  # days and models that a finding lists
_LEAST_UNMETERED = 10  # requests


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a rule found about a subject.

    A higher `level` is worse, and is told again. `facts` are exact: whole numbers and texts.
    """

    rule: str
    kind: str
    subject: str
    level: int = 1
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Scene:
    """What the rules look at."""

    connection: Connection
    settings: BillingSettings
    now: datetime

    @property
    def zone(self) -> tzinfo:
        """The billing time zone."""
        return self.settings.zone

    @property
    def today(self) -> date:
        """The billing day that is open."""
        return billing_day(self.now, self.zone)

    @property
    def days(self) -> list[date]:
        """The open day; and the one before it, while events for it may still come."""
        begun = day_interval(self.today, self.zone).start
        yesterday = [self.today - ONE_DAY] if self.now - begun < _LATE_EVENTS else []
        return [*yesterday, self.today]

    @cached_property
    def waiting(self) -> Unread | None:
        """What of the journal ingest has not read yet."""
        reached = self.connection.execute(sa.select(journal_offsets))
        offsets = {row.segment: row.offset_bytes for row in reached}
        return unread(offsets, self.settings.journal_dir)


def surge_rule(settings: BillingSettings, kind: Kind) -> SurgeRule:
    """The rule for a kind of subject: projects and models need more tokens than a user to be worth a look."""
    floor = settings.alert_floor_tokens * (1 if kind == "user" else 2)
    return SurgeRule(rise=settings.alert_rise_percent / 100, floor_tokens=floor)


def surges(scene: Scene) -> Iterable[Finding]:
    """Users, projects and models whose day rises far above the same weekday of the weeks before."""
    kinds: tuple[Kind, ...] = ("user", "project", "model")
    for kind in kinds:
        rule = surge_rule(scene.settings, kind)
        found: dict[str, Finding] = {}
        for day in scene.days:
            told = history(scene.connection, kind, day - WINDOW, day)
            before, now = told.tokens[:, :-1], told.tokens[:, -1]
            judged = judge(before, now, rule)
            for place in np.flatnonzero(judged.surges):
                tokens, baseline = int(now[place]), round(float(judged.baseline[place]))
                rise = 100 * (tokens - baseline) // max(baseline, 1)
                facts = {"day": str(day), "tokens": tokens, "baseline_tokens": baseline, "rise_percent": rise}
                # Twice as much again is told again.
                level = max(1, (tokens // max(round(float(judged.bound[place])), 1)).bit_length())
                found[told.names[place]] = Finding("surge", kind, told.names[place], level, facts)
        yield from found.values()


def budgets(scene: Scene) -> Iterable[Finding]:
    """Budgets that are spent to 50, 80 or 100 percent, or will be overrun as the month goes."""
    try:
        listed = read_budgets(scene.settings.budgets_file)
    except BudgetsError as error:
        if error.code == "budgets_missing":
            return
        raise
    month = month_start(scene.today)
    found = month_budgets(scene.connection, listed, month, scene.zone, scene.now)
    for each in found.spent:
        budget = each.budget
        facts = {
            "month": f"{month:%Y-%m}",
            "budget": money.format_amount(budget.amount_minor, found.currency),
            "billed": money.format_amount(each.billed_minor, found.currency),
        }
        percent = each.percent if each.percent is not None else Fraction(100 if each.billed_minor else 0)
        reached = next((level for level in _PERCENTS if percent >= level), None)
        if reached is not None:
            told = {**facts, "percent": int(percent)}
            yield Finding("budget", budget.kind, budget.name, reached, told)
        projected = each.projected_minor
        if projected is None or found.days_over < _PROJECT_AFTER_DAYS or percent >= 100:
            continue
        if projected > budget.amount_minor:
            told = {**facts, "projected": money.format_amount(projected, found.currency)}
            yield Finding("budget_projected", budget.kind, budget.name, 1, told)


def quotas(scene: Scene) -> Iterable[Finding]:
    """Users' days and projects' months that have used 80 or 100 percent of their quota."""
    settings, month = scene.settings, month_start(scene.today)
    if not settings.quotas:
        return
    defaults = {
        USER_DAY: settings.quota_user_day_tokens,
        PROJECT_MONTH: settings.quota_project_month_tokens,
    }
    limits = quota_limits(scene.connection, defaults, scene.now)
    spans: tuple[tuple[str, Kind, date, str], ...] = (
        (USER_DAY, "user", scene.today, str(scene.today)),
        (PROJECT_MONTH, "project", month, f"{month:%Y-%m}"),
    )
    for quota, kind, first, period in spans:
        told = history(scene.connection, kind, first, scene.today)
        for name, tokens in zip(told.names, told.tokens.sum(axis=1).tolist(), strict=True):
            limit = limits.of(quota, name)
            percent = 100 if not limit else 100 * tokens // limit
            reached = next((level for level in _QUOTA_PERCENTS if percent >= level), None)
            if reached is not None:
                facts = {"period": period, "percent": percent, "tokens": tokens, "limit": limit}
                yield Finding("quota", kind, name, reached, facts)


def unrated(scene: Scene) -> Iterable[Finding]:
    """Models that are used today or were yesterday, and have no price."""
    automatic = scene.settings.prices_import == "automatic"
    tariff = read_tariff(scene.settings.prices_file) if automatic else kept_tariff(scene.connection)
    hours = usage_hours.c
    what = (hours.model, hours.model_version, hours.model_label, hours.latency_class, hours.context_band)
    tokens = whole(sa.func.sum(hours.prompt_tokens + hours.completion_tokens))
    first = scene.today - ONE_DAY
    query = sa.select(hours.day, *what, tokens).where(hours.day >= first).group_by(hours.day, *what)
    missing: dict[str, int] = {}
    for day, model, version, label, latency, band, count in scene.connection.execute(query):
        price = tariff.price_list.in_force(
            model, version, day, model_label=label, latency_class=latency, context_band=band
        )
        if price is None and count:
            missing[model] = missing.get(model, 0) + count
    for model, count in sorted(missing.items()):
        yield Finding("unrated", "model", model, 1, {"tokens": count, "since": str(first)})


def closing(scene: Scene) -> Iterable[Finding]:
    """Days that are over and not closed; and where events, aggregates and lines disagree."""
    days = event_batches.c.day
    used = sa.select(days).where(days < scene.today, days.not_in(CLOSED)).distinct()
    over = [
        day
        for day in sorted(scene.connection.scalars(used))
        if scene.now - day_interval(day, scene.zone).end >= _LATE_EVENTS
    ]
    if over:
        facts = {"days": len(over), "first": str(over[0]), "last": str(over[-1])}
        yield Finding("not_closed", "ledger", "days", 1, facts)
    last_closed = scene.connection.scalars(CLOSED.order_by(bill_days.c.day.desc()).limit(1)).all()
    # What was found is looked at until it is gone: it is not over when another day is the last.
    wrong = scene.connection.scalars(CLOSED.where(bill_days.c.day.in_(_told_mismatches(scene)))).all()
    # What is asked hourly must not cost more with every day that somebody forgot.
    checks: list[tuple[date, Callable[[Connection, date], Any]]] = [
        (day, prove_hours) for day in over[:_NAMED]
    ]
    checks += [(day, prove) for day in sorted({*last_closed, *wrong})]
    for day, check in checks:
        try:
            check(scene.connection, day)
        except ClosureError as error:
            yield Finding("mismatch", "day", str(day), 1, {"difference": str(error)})


def _told_mismatches(scene: Scene) -> list[date]:
    """The days that were told not to add up, and not yet that they do."""
    episode = alert_episodes.c
    told = sa.select(episode.subject).where(episode.rule == "mismatch", episode.resolved_at.is_(None))
    return [date.fromisoformat(day) for day in scene.connection.scalars(told)]


def unmetered(scene: Scene) -> Iterable[Finding]:
    """Models whose servers have certainly answered more requests than any event tells of.

    What they answered after the oldest event that still waits in the journal is not looked at.
    """
    until = scene.waiting.oldest if scene.waiting else None
    found: dict[str, Finding] = {}
    for day in (scene.today - ONE_DAY, scene.today):
        for row in reconcile_day(scene.connection, day, scene.zone, until).days:
            served = row.requests.served
            if served is None:
                continue
            missing = served.least - row.requests.metered
            if missing < _LEAST_UNMETERED:
                continue
            if Fraction(100 * missing, served.least) > scene.settings.alert_unmetered_percent:
                facts = {
                    "day": str(day), "served": served.least, "metered": row.requests.metered,
                    "percent": int(Fraction(100 * missing, served.least)),
                }  # fmt: skip
                found[row.model] = Finding("unmetered", "model", row.model, 1, facts)
    yield from found.values()


def journal_lag(scene: Scene) -> Iterable[Finding]:
    """Events that wait in the journal for longer than ingest should take."""
    waiting = scene.waiting
    if waiting is None:
        return
    minutes = int((scene.now - waiting.oldest).total_seconds() // 60)
    limit = scene.settings.alert_journal_lag_minutes
    if minutes >= limit:
        level = max(1, (minutes // max(limit, 1)).bit_length())
        facts = {
            "minutes": minutes, "segments": waiting.segments, "bytes": waiting.size_bytes,
            "segment": waiting.oldest_segment,
        }  # fmt: skip
        yield Finding("journal_lag", "journal", "ingest", level, facts)


def unusual_addresses(scene: Scene) -> Iterable[Finding]:
    """Users that ask from a network which none of their requests came from in the weeks before."""
    found: dict[str, Finding] = {}
    for day in scene.days:
        for user, networks, requests in strange_networks(scene.connection, day, scene.settings):
            facts = {"day": str(day), "networks": ", ".join(networks), "requests": requests}
            found[user] = Finding("address", "user", user, 1, facts)
    yield from found.values()


def strange_networks(
    connection: Connection, day: date, settings: BillingSettings
) -> Iterable[tuple[str, list[str], int]]:
    """Users with enough requests on a day from networks that are new for them, these, and how many requests.

    Of whom nothing is known for `least_weeks` weeks, everything is new, so nothing is said.
    """
    now, before = network_days.alias("now"), network_days.alias("before")
    seen = sa.exists().where(
        before.c.day.between(day - WINDOW, day - ONE_DAY),
        before.c.user_id == now.c.user_id,
        before.c.network == now.c.network,
    )
    known_since = day - SurgeRule().least_weeks * 7 * ONE_DAY
    known = sa.exists().where(
        before.c.day.between(day - WINDOW, known_since), before.c.user_id == now.c.user_id
    )
    query = sa.select(now.c.user_id, now.c.network, now.c.requests).where(now.c.day == day, ~seen, known)
    by_user: dict[str, list[tuple[str, int]]] = {}
    for user, network, requests in connection.execute(query):
        by_user.setdefault(user, []).append((network, requests))
    for user, networks in sorted(by_user.items()):
        requests = sum(count for _, count in networks)
        if requests >= settings.alert_address_requests:
            most = sorted(networks, key=lambda each: -each[1])[:_NAMED]
            yield user, [network for network, _ in most], requests


# Each rule by its name; the names of the findings that it makes, so that only those are resolved.
RULES: dict[str, tuple[Callable[[Scene], Iterable[Finding]], frozenset[str]]] = {
    "surges": (surges, frozenset({"surge"})),
    "budgets": (budgets, frozenset({"budget", "budget_projected"})),
    "quotas": (quotas, frozenset({"quota"})),
    "unrated": (unrated, frozenset({"unrated"})),
    "closing": (closing, frozenset({"not_closed", "mismatch"})),
    "unmetered": (unmetered, frozenset({"unmetered"})),
    "journal_lag": (journal_lag, frozenset({"journal_lag"})),
    "addresses": (unusual_addresses, frozenset({"address"})),
}
URGENT = frozenset({"mismatch", "journal_lag", "address", "unmetered"})  # told in quiet hours too
