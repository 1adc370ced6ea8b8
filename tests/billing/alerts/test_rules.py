"""Each rule on a real ledger: what it finds, and what it leaves alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from billing.alerts.checking import check
from billing.alerts.rules import RULES, WINDOW, Finding, Scene
from billing.day_sums import sum_days
from billing.ingest import ingest
from billing.ledger import open_ledger, writing
from billing.settings import BillingSettings
from billing.tables import bill_lines, counter_samples, usage_hours
from tallybook.acts import Act, record
from tallybook.calendar import ONE_DAY, ONE_HOUR
from tests.billing.conftest import TIME_ZONE
from tests.billing.days import at, bring, close, draft
from tests.billing.factories import DAY, ZONE, an_event, write_segment

NOON = at(DAY)
PRICES = """
currency = "CNY"
per_tokens = 1000
[[prices]]
model = "review-sentiment"
effective_from = 2026-01-01
input = "0.80"
output = "2.40"
"""
BUDGET = (
    'currency = "CNY"\n[[budgets]]\nproject = "search"\neffective_from = "2026-01"\namount = "{amount}"\n'
)


@pytest.fixture
def settings(tmp_path: Path, sqlite_url: str) -> BillingSettings:
    (tmp_path / "prices.toml").write_text(PRICES)
    (tmp_path / "journal").mkdir()
    return BillingSettings(
        time_zone=TIME_ZONE,
        ledger_url=sqlite_url,
        prices_file=tmp_path / "prices.toml",
        budgets_file=tmp_path / "budgets.toml",
        journal_dir=tmp_path / "journal",
        alert_floor_tokens=1_000,
    )


def look(ledger: Engine, settings: BillingSettings, rule: str, now: datetime = NOON) -> list[Finding]:
    with writing(ledger) as connection:
        scene = Scene(connection, settings, now)
        sum_days(connection, scene.today - WINDOW - ONE_DAY, scene.today)
        return list(RULES[rule][0](scene))


def usual(weeks: int = 6, **changes: Any) -> Iterator[Any]:
    for number in range(1, weeks * 7 + 1):
        yield an_event(time=at(DAY - number * ONE_DAY), prompt_tokens=1_000, **changes)


def test_a_day_far_above_the_same_weekday_is_a_surge_of_user_project_and_model(
    sqlite_ledger: Engine, settings: BillingSettings
) -> None:
    bring(sqlite_ledger, usual())
    bring(sqlite_ledger, usual(user="user-b"))
    bring(sqlite_ledger, [an_event(prompt_tokens=9_980), an_event(user="user-b", prompt_tokens=1_000)])
    assert look(sqlite_ledger, settings, "surges") == [
        Finding("surge", "user", "user-a", 2, _surge(10_000, 1_020)),
        Finding("surge", "project", "search", 1, _surge(11_020, 2_040)),
        Finding("surge", "model", "review-sentiment", 1, _surge(11_020, 2_040)),
    ]


def _surge(tokens: int, baseline: int) -> dict[str, Any]:
    rise = 100 * (tokens - baseline) // baseline
    return {"day": str(DAY), "tokens": tokens, "baseline_tokens": baseline, "rise_percent": rise}


def test_yesterday_may_still_become_a_surge_in_the_first_hours(
    sqlite_ledger: Engine, settings: BillingSettings
) -> None:
    bring(sqlite_ledger, usual())
    bring(sqlite_ledger, [an_event(prompt_tokens=20_000)])
    tomorrow = DAY + ONE_DAY
    assert {f.subject for f in look(sqlite_ledger, settings, "surges", at(tomorrow, 5))} == {
        "user-a", "search", "review-sentiment",
    }  # fmt: skip
    assert look(sqlite_ledger, settings, "surges", at(tomorrow, 7)) == []


@pytest.mark.parametrize(
    ("amount", "found"),
    [
        # 100 + 20 tokens of each of 21 days: 0.128 a day, 2.69 by the last that is over.
        ("10.00", []),
        ("5.00", [("budget", 50)]),
        ("3.00", [("budget", 80), ("budget_projected", 1)]),
        ("2.69", [("budget", 100)]),
        ("0.00", [("budget", 100)]),
    ],
)
def test_a_budget_is_told_at_50_80_and_100_percent_and_when_it_will_be_overrun(
    sqlite_ledger: Engine, settings: BillingSettings, amount: str, found: list[tuple[str, int]]
) -> None:
    bring(sqlite_ledger, (an_event(time=at(DAY - number * ONE_DAY)) for number in range(21)))
    for number in reversed(range(21)):
        draft(sqlite_ledger, DAY - number * ONE_DAY)
    settings.budgets_file.write_text(BUDGET.format(amount=amount))
    told = look(sqlite_ledger, settings, "budgets", at(DAY + ONE_DAY, 1))
    assert [(f.rule, f.level) for f in told] == found
    assert all((f.kind, f.subject) == ("project", "search") for f in told)


def test_without_a_budgets_file_there_are_no_budgets(
    sqlite_ledger: Engine, settings: BillingSettings
) -> None:
    assert look(sqlite_ledger, settings, "budgets") == []


def test_a_quota_is_told_at_80_and_100_percent_of_what_was_set_and_granted(
    sqlite_ledger: Engine, settings: BillingSettings
) -> None:
    until = (NOON + 2 * ONE_HOUR).isoformat()
    decided: list[tuple[str, dict[str, Any]]] = [
        ("quota.set", {"quota": "user_day_tokens", "subject": "own", "most": 200}),
        ("quota.set", {"quota": "user_day_tokens", "subject": "free", "most": 100}),
        ("quota.set", {"quota": "user_day_tokens", "subject": "free", "most": None}),
        ("quota.approved", _grant("g1", "granted", 100, until)),
        ("quota.approved", _grant("g2", "ended", 100, until)),
        ("quota.ended", _grant("g2", "ended", 100, until)),
        ("quota.approved", _grant("g3", "over", 100, NOON.isoformat())),
        ("key.created", {"key": "k"}),
    ]
    for kind, details in decided:
        record(settings.journal_dir, Act(source="tests", who="ops-a", kind=kind, details=details))
        ingest(sqlite_ledger, settings.journal_dir, ZONE)  # of two in one millisecond either may be first
    for user in ("own", "free", "granted", "ended", "over", "small"):
        bring(sqlite_ledger, [an_event(user=user, prompt_tokens=20 if user == "small" else 140)])
    found = look(sqlite_ledger, settings.model_copy(update={"quota_user_day_tokens": 150}), "quotas")
    assert {(f.subject, f.level, f.facts["percent"], f.facts["limit"]) for f in found} == {
        ("own", 80, 80, 200), ("free", 100, 106, 150), ("ended", 100, 106, 150), ("over", 100, 106, 150),
    }  # fmt: skip
    assert {f.subject for f in look(sqlite_ledger, settings, "quotas")} == {"own"}
    monthly = settings.model_copy(update={"quota_project_month_tokens": 1_000})
    assert [(f.kind, f.subject, f.facts["tokens"]) for f in look(sqlite_ledger, monthly, "quotas")] == [
        ("user", "own", 160), ("project", "search", 840),
    ]  # fmt: skip
    without = settings.model_copy(update={"quotas": False, "quota_user_day_tokens": 150})
    assert look(sqlite_ledger, without, "quotas") == []


def _grant(number: str, user: str, tokens: int, until: str) -> dict[str, Any]:
    return {
        "grant": number, "quota": "user_day_tokens", "subject": user, "tokens": tokens, "until": until,
        "reason": "a campaign",
    }  # fmt: skip


def test_a_model_without_a_price_is_told_with_its_tokens(
    sqlite_ledger: Engine, settings: BillingSettings
) -> None:
    bring(sqlite_ledger, [an_event(), an_event(model="trial"), an_event(model="trial", status=500)])
    assert [(f.subject, f.facts["tokens"]) for f in look(sqlite_ledger, settings, "unrated")] == [
        ("trial", 240)
    ]


def test_days_that_are_over_must_be_closed_within_hours(
    sqlite_ledger: Engine, settings: BillingSettings
) -> None:
    before = DAY - ONE_DAY
    bring(sqlite_ledger, [an_event(), an_event(time=at(before)), an_event(time=at(before - ONE_DAY))])
    close(sqlite_ledger, before - ONE_DAY)
    assert look(sqlite_ledger, settings, "closing", at(before + ONE_DAY, 5)) == []
    (told,) = look(sqlite_ledger, settings, "closing", at(DAY + ONE_DAY, 7))
    assert (told.rule, told.facts) == ("not_closed", {"days": 2, "first": str(before), "last": str(DAY)})


@pytest.mark.parametrize("table", [bill_lines, usage_hours], ids=["a line", "an hour"])
def test_what_does_not_add_up_is_told_with_the_difference(
    sqlite_ledger: Engine, settings: BillingSettings, table: sa.Table
) -> None:
    bring(sqlite_ledger, [an_event()])
    if table is bill_lines:
        close(sqlite_ledger, DAY)
    column = bill_lines.c.quantity_tokens if table is bill_lines else usage_hours.c.prompt_tokens
    with writing(sqlite_ledger) as connection:
        connection.execute(table.update().values({column: column + 1}))
    told = look(sqlite_ledger, settings, "closing", at(DAY + ONE_DAY, 7))
    (mismatch,) = (f for f in told if f.rule == "mismatch")
    assert mismatch.subject == str(DAY)
    assert str(DAY) in mismatch.facts["difference"]


def test_a_mismatch_is_over_when_it_is_gone_not_when_the_next_day_is_closed(
    sqlite_ledger: Engine, settings: BillingSettings
) -> None:
    def changed(at_hour: datetime, amount: int = 0) -> list[tuple[str, str]]:
        with writing(sqlite_ledger) as connection:
            altered = bill_lines.c.amount_minor + amount
            connection.execute(
                bill_lines.update().where(bill_lines.c.day == DAY).values(amount_minor=altered)
            )
        found = check(sqlite_ledger, settings, at_hour).changes
        return [(c.change, c.episode.subject) for c in found if c.episode.rule == "mismatch"]

    bring(sqlite_ledger, [an_event(), an_event(time=at(DAY + ONE_DAY))])
    close(sqlite_ledger, DAY)
    next_day = DAY + ONE_DAY
    assert changed(at(next_day, 7), 1) == [("opened", str(DAY))]
    close(sqlite_ledger, next_day)
    assert changed(at(next_day + ONE_DAY, 7)) == []
    assert changed(at(next_day + ONE_DAY, 9), -1) == [("resolved", str(DAY))]


def test_events_that_come_while_it_looks_are_no_mismatch(
    postgres_url: str, settings: BillingSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, another = (open_ledger(postgres_url, TIME_ZONE) for _ in range(2))
    bring(ledger, [an_event()])
    close(ledger, DAY)
    monkeypatch.setattr("billing.ingest.roll_up_now", lambda _: None)  # it ends in the midst
    came: list[str] = []

    @sa.event.listens_for(ledger, "after_cursor_execute")
    def _come(_connection: object, _cursor: object, asked: str, *_: object) -> None:
        if not came and "count" not in asked and "NOT event_batches.rolled_up" in asked and "LIMIT" in asked:
            came.append(asked)  # whether all events are in the hours: they were
            bring(another, [an_event()])

    checked = check(ledger, settings, at(DAY + ONE_DAY, 7))
    assert (len(came), checked.findings, checked.failed) == (1, [], {})
    for each in (ledger, another):
        each.dispose()


def test_requests_that_only_the_servers_know_of_are_told(
    sqlite_ledger: Engine, settings: BillingSettings
) -> None:
    bring(sqlite_ledger, [an_event() for _ in range(30)])
    server = "http://127.0.0.1:1/metrics"
    rows = [
        {"sampled_at": at(DAY, hour), "server": server, "model": model, "counter": counter, "value": value}
        for hour, served in ((1, 0), (11, 40), (23, 40))
        for model, counter, value in (
            ("", "up", 1), ("review-sentiment", "requests", served), ("quiet", "requests", served // 5),
        )
    ]  # fmt: skip
    with writing(sqlite_ledger) as connection:
        connection.execute(counter_samples.insert(), rows)
    told = look(sqlite_ledger, settings, "unmetered")
    assert [(f.subject, f.facts["served"], f.facts["metered"], f.facts["percent"]) for f in told] == [
        ("review-sentiment", 40, 30, 25)
    ]


def test_requests_whose_events_still_wait_in_the_journal_are_not_called_unmetered(
    sqlite_ledger: Engine, settings: BillingSettings
) -> None:
    bring(sqlite_ledger, [an_event(time=at(DAY, 9)) for _ in range(30)])
    rows = [
        {"sampled_at": at(DAY, hour), "server": "s", "model": model, "counter": counter, "value": value}
        for hour, served in ((1, 0), (10, 30), (12, 90))
        for model, counter, value in (("", "up", 1), ("review-sentiment", "requests", served))
    ]
    with writing(sqlite_ledger) as connection:
        connection.execute(counter_samples.insert(), rows)
    events = [an_event(time=at(DAY, 11)) for _ in range(10)]
    write_segment(settings.journal_dir, events)
    assert look(sqlite_ledger, settings, "unmetered") == []
    ingest(sqlite_ledger, settings.journal_dir, ZONE)
    (told,) = look(sqlite_ledger, settings, "unmetered")
    assert (told.facts["served"], told.facts["metered"]) == (90, 40)


def test_a_model_that_is_unmetered_for_two_days_is_one_episode(
    sqlite_ledger: Engine, settings: BillingSettings
) -> None:
    rows = [
        {"sampled_at": at(day, hour), "server": "s", "model": model, "counter": counter, "value": value}
        for day, hour, served in (
            (DAY - ONE_DAY, 1, 0), (DAY - ONE_DAY, 11, 40), (DAY, 1, 40), (DAY, 11, 100),
        )
        for model, counter, value in (("", "up", 1), ("review-sentiment", "requests", served))
    ]  # fmt: skip
    with writing(sqlite_ledger) as connection:
        connection.execute(counter_samples.insert(), rows)
    checked = check(sqlite_ledger, settings, NOON)
    told = [finding for finding in checked.findings if finding.rule == "unmetered"]
    assert [(f.subject, f.facts["day"], f.facts["served"]) for f in told] == [
        ("review-sentiment", str(DAY), 60)
    ]
    assert [changed.change for changed in checked.changes if changed.episode.rule == "unmetered"] == [
        "opened"
    ]


def test_events_that_wait_in_the_journal_are_told_until_they_are_read(
    sqlite_ledger: Engine, settings: BillingSettings
) -> None:
    write_segment(settings.journal_dir, [an_event()], "old.jsonl")
    write_segment(settings.journal_dir, [an_event(time=NOON + ONE_HOUR)], "new.jsonl")
    assert look(sqlite_ledger, settings, "journal_lag", NOON + timedelta(minutes=89)) == []
    (told,) = look(sqlite_ledger, settings, "journal_lag", NOON + timedelta(minutes=91))
    assert (told.level, told.facts["minutes"], told.facts["segment"]) == (1, 91, "old.jsonl")
    (later,) = look(sqlite_ledger, settings, "journal_lag", NOON + timedelta(hours=4))
    assert later.level == 2
    ingest(sqlite_ledger, settings.journal_dir, ZONE)
    assert look(sqlite_ledger, settings, "journal_lag", NOON + timedelta(hours=4)) == []


def test_an_event_of_a_clock_that_was_wrong_waits_since_its_segment_changed(
    sqlite_ledger: Engine, settings: BillingSettings
) -> None:
    old = write_segment(settings.journal_dir, [an_event(time=datetime(1970, 1, 1, tzinfo=timezone.utc))])
    os.utime(old, (NOON.timestamp(), NOON.timestamp()))
    (told,) = look(sqlite_ledger, settings, "journal_lag", NOON + timedelta(minutes=91))
    assert told.facts["minutes"] == 91


@pytest.mark.parametrize(
    ("requests", "weeks", "found"), [(20, 6, True), (19, 6, False), (500, 3, False)], ids=str
)
def test_a_user_is_told_of_who_asks_from_a_network_never_seen(
    sqlite_ledger: Engine, settings: BillingSettings, requests: int, weeks: int, found: bool
) -> None:
    bring(sqlite_ledger, usual(weeks))
    bring(sqlite_ledger, [an_event(client_ip="127.0.0.200")])  # of a network that is known
    bring(sqlite_ledger, [an_event(client_ip="203.0.113.9") for _ in range(requests)])
    told = look(sqlite_ledger, settings, "addresses")
    expected = {"day": str(DAY), "networks": "203.0.113.0/24", "requests": requests}
    assert told == ([Finding("address", "user", "user-a", 1, expected)] if found else [])


def test_a_rule_that_can_not_look_keeps_no_other_from_looking_and_resolves_nothing(
    sqlite_ledger: Engine, settings: BillingSettings
) -> None:
    bring(sqlite_ledger, [an_event(model="trial")])
    draft(sqlite_ledger, DAY)
    settings.budgets_file.write_text("nonsense")
    first = check(sqlite_ledger, settings, NOON)
    assert list(first.failed) == ["budgets"]
    assert first.failed["budgets"].startswith("budgets_invalid")
    assert [c.episode.rule for c in first.changes] == ["unrated"]
    settings.prices_file.unlink()
    second = check(sqlite_ledger, settings, NOON + 5 * ONE_HOUR)
    assert set(second.failed) == {"budgets", "unrated"}
    assert second.changes == []


def test_an_empty_ledger_has_nothing_to_tell(sqlite_ledger: Engine, settings: BillingSettings) -> None:
    told = check(sqlite_ledger, settings, NOON)
    assert (told.findings, told.changes, told.failed) == ([], [], {})
