"""An episode's life: opened once, told again only when it rises, resolved when it is gone for a while."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from sqlalchemy.engine import Engine

from billing.alerts.episodes import Change, acknowledge, episodes, update
from billing.alerts.rules import Finding
from billing.errors import AlertError
from billing.ledger import writing

NOON = datetime(2026, 11, 21, 4, tzinfo=timezone.utc)
HOUR = timedelta(hours=1)
LOOKED = frozenset({"budget", "surge"})


def found(level: int = 50, subject: str = "search", **facts: object) -> Finding:
    return Finding("budget", "project", subject, level, facts)


def check(ledger: Engine, at: int, *findings: Finding, looked: frozenset[str] = LOOKED) -> list[Change]:
    with writing(ledger) as connection:
        return [changed.change for changed in update(connection, findings, looked, NOON + at * HOUR)]


def test_an_episode_is_told_when_it_opens_rises_and_is_over(ledger: Engine) -> None:
    assert check(ledger, 0, found()) == ["opened"]
    assert check(ledger, 1, found()) == []
    assert check(ledger, 2, found(80)) == ["rose"]
    assert check(ledger, 3, found(50)) == []
    assert check(ledger, 4) == []  # absent for an hour only
    assert check(ledger, 5) == ["resolved"]
    assert check(ledger, 6) == []
    assert check(ledger, 7, found()) == ["opened"]
    with writing(ledger) as connection:
        assert [(e.level, e.state) for e in episodes(connection)] == [(50, "open"), (80, "resolved")]


def test_who_comes_and_goes_is_told_once(ledger: Engine) -> None:
    told = [check(ledger, hour, *([found()] if hour % 2 == 0 else [])) for hour in range(10)]
    assert told == [["opened"], *[[]] * 9]


def test_what_nobody_looked_for_is_not_over(sqlite_ledger: Engine) -> None:
    check(sqlite_ledger, 0, found())
    assert check(sqlite_ledger, 5, looked=frozenset({"surge"})) == []
    assert check(sqlite_ledger, 6) == ["resolved"]


def test_facts_follow_without_a_word(sqlite_ledger: Engine) -> None:
    check(sqlite_ledger, 0, found(percent=51))
    check(sqlite_ledger, 1, found(percent=64))
    with writing(sqlite_ledger) as connection:
        (episode,) = episodes(connection)
    assert episode.facts == {"percent": 64}
    assert (episode.opened_at, episode.seen_at) == (NOON, NOON + HOUR)


def test_an_acknowledgement_holds_until_it_gets_worse(sqlite_ledger: Engine) -> None:
    check(sqlite_ledger, 0, found())
    with writing(sqlite_ledger) as connection:
        (known,) = acknowledge(connection, [1], "ops-a", NOON)
        assert acknowledge(connection, [1], "ops-b", NOON) == []
    assert (known.state, known.acknowledged_by) == ("acknowledged", "ops-a")
    assert check(sqlite_ledger, 1, found()) == []
    assert check(sqlite_ledger, 2, found(100)) == ["rose"]
    with writing(sqlite_ledger) as connection:
        assert [e.state for e in episodes(connection)] == ["open"]


@pytest.mark.parametrize(("number", "code"), [(1, "episode_resolved"), (2, "episode_unknown")])
def test_what_is_over_or_never_was_is_not_acknowledged(sqlite_ledger: Engine, number: int, code: str) -> None:
    check(sqlite_ledger, 0, found())
    check(sqlite_ledger, 3)
    with pytest.raises(AlertError) as refused, writing(sqlite_ledger) as connection:
        acknowledge(connection, [number], "ops-a", NOON)
    assert refused.value.code == code
