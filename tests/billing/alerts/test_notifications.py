"""From an episode's change to the robots: once, grouped, in peace at night, through crashes and refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from email import message_from_bytes
from email.policy import default
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import SecretStr, ValidationError
from sqlalchemy.engine import Engine

from billing.alerts import notifications as sending
from billing.alerts.episodes import update
from billing.alerts.notifications import Sent, deliver, end_of_quiet, put_out
from billing.alerts.rules import Finding
from billing.alerts.tables import notifications
from billing.ledger import reading, writing
from billing.settings import BillingSettings
from billing.simulation.mark import mark_simulated
from tests.billing.conftest import TIME_ZONE
from tests.billing.robots import SECRET, Robots, running_robots

NOW = datetime(2026, 11, 21, 4, tzinfo=timezone.utc)  # noon in Shanghai
HOUR = timedelta(hours=1)
REFUSED = (200, b'{"errcode":45009,"errmsg":"api freq out of limit"}')
FACTS = {"day": "2026-11-21", "tokens": 50_000, "baseline_tokens": 1_000, "rise_percent": 4_900}


@pytest.fixture
def robots() -> Iterator[Robots]:
    with running_robots() as running:
        yield running


def settings(robots: Robots, tmp_path: Path, *kinds: str, **more: Any) -> BillingSettings:
    channels = {kind: f"{kind}+{robots.url}/{kind}#{SECRET}" for kind in kinds}
    values: dict[str, Any] = {"alert_channels": channels, "outbox_dir": tmp_path / "outbox"}
    return BillingSettings(**values | {"time_zone": TIME_ZONE, "smtp_url": None} | more)


def surge(user: str = "user-a", level: int = 1) -> Finding:
    return Finding("surge", "user", user, level, FACTS)


def open_episodes(ledger: Engine, told: BillingSettings, *findings: Finding, now: datetime = NOW) -> None:
    with writing(ledger) as connection:
        put_out(connection, told, update(connection, findings, {"surge", "mismatch"}, now), now)


def states(ledger: Engine) -> list[str]:
    with reading(ledger) as connection:
        return list(connection.scalars(sa.select(notifications.c.state).order_by(notifications.c.id)))


def test_every_channel_gets_one_message_of_all_that_changed(
    ledger: Engine, robots: Robots, tmp_path: Path
) -> None:
    told = settings(robots, tmp_path, "wecom", "dingtalk", "feishu", "slack", "webhook")
    open_episodes(ledger, told, surge(), surge("user-b"))
    assert deliver(ledger, told, NOW) == [Sent(kind, 2) for kind in told.alert_channels]
    assert sorted(path for path, *_ in robots.came) == sorted(f"/{kind}" for kind in told.alert_channels)
    for text in robots.texts():
        assert text.splitlines()[0] == "Tallybook: 2 alerts"
        assert "[NEW] user user-b used 50,000 tokens on 2026-11-21, +4,900% over its usual 1,000" in text
    assert deliver(ledger, told, NOW) == []
    assert len(robots.came) == 5


def test_a_check_that_changes_nothing_says_nothing(
    sqlite_ledger: Engine, robots: Robots, tmp_path: Path
) -> None:
    told = settings(robots, tmp_path, "wecom")
    for hour in range(5):
        open_episodes(sqlite_ledger, told, surge(), now=NOW + hour * HOUR)
        deliver(sqlite_ledger, told, NOW + hour * HOUR)
    assert len(robots.came) == 1


def test_a_storm_is_one_message_that_says_how_many_there_are(
    sqlite_ledger: Engine, robots: Robots, tmp_path: Path
) -> None:
    told = settings(robots, tmp_path, "webhook")
    open_episodes(sqlite_ledger, told, *(surge(f"user-{number:03}") for number in range(300)))
    assert deliver(sqlite_ledger, told, NOW) == [Sent("webhook", 300)]
    (text,), body = robots.texts(), robots.came[0][1]
    assert len(text.splitlines()) == 22
    assert text.endswith("and 280 more")
    assert len(body["alerts"]) == 300  # a program gets them all


def test_an_error_in_the_body_is_tried_again_and_the_message_comes_once(
    sqlite_ledger: Engine, robots: Robots, tmp_path: Path
) -> None:
    told = settings(robots, tmp_path, "wecom")
    open_episodes(sqlite_ledger, told, surge())
    robots.refusals += [REFUSED, REFUSED]
    assert deliver(sqlite_ledger, told, NOW, pause_seconds=0) == [Sent("wecom", 1)]
    assert len(robots.came) == 3
    assert "sent again" not in robots.texts()[-1]
    assert states(sqlite_ledger) == ["sent"]


def test_what_is_refused_waits_longer_each_time_and_goes_with_what_comes_later(
    sqlite_ledger: Engine, robots: Robots, tmp_path: Path
) -> None:
    told = settings(robots, tmp_path, "wecom")
    open_episodes(sqlite_ledger, told, surge())
    robots.refusals.append(REFUSED)
    (failed,) = deliver(sqlite_ledger, told, NOW, tries=1)
    assert failed.error is not None
    assert "api freq out of limit" in failed.error
    assert deliver(sqlite_ledger, told, NOW + timedelta(minutes=1)) == []
    open_episodes(sqlite_ledger, told, surge(), surge("user-b"), now=NOW + HOUR)
    assert deliver(sqlite_ledger, told, NOW + HOUR) == [Sent("wecom", 2)]
    assert robots.texts()[-1].count("[NEW]") == 2


def test_after_days_it_is_given_up_and_says_why(
    sqlite_ledger: Engine, robots: Robots, tmp_path: Path
) -> None:
    told = settings(robots, tmp_path, "wecom")
    open_episodes(sqlite_ledger, told, surge())
    robots.refusals.append(REFUSED)
    deliver(sqlite_ledger, told, NOW + timedelta(days=4), tries=1)
    assert states(sqlite_ledger) == ["given_up"]
    with reading(sqlite_ledger) as connection:
        assert "45009" in str(connection.scalar(sa.select(notifications.c.last_error)))


def test_what_is_given_up_takes_nothing_with_it_that_came_later(
    ledger: Engine, robots: Robots, tmp_path: Path
) -> None:
    told = settings(robots, tmp_path, "wecom")
    open_episodes(ledger, told, surge())
    later = NOW + timedelta(days=4)
    open_episodes(ledger, told, surge(), surge("user-b"), now=later)
    robots.refusals.append(REFUSED)
    deliver(ledger, told, later, tries=1)
    assert states(ledger) == ["given_up", "waiting"]
    assert deliver(ledger, told, later + HOUR) == [Sent("wecom", 1)]
    assert "user user-b" in robots.texts()[-1]
    assert states(ledger) == ["given_up", "sent"]


def test_a_crash_while_sending_loses_nothing_and_the_repetition_says_so(
    ledger: Engine, robots: Robots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = settings(robots, tmp_path, "webhook")
    open_episodes(ledger, told, surge())

    def dies(*_args: object, **_values: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(sending, "_mark", dies)
        with pytest.raises(KeyboardInterrupt):
            deliver(ledger, told, NOW)
    assert states(ledger) == ["sending"]
    assert deliver(ledger, told, NOW) == [Sent("webhook", 1)]
    first, second = robots.came
    assert first[2]["Idempotency-Key"] == second[2]["Idempotency-Key"]
    assert "sent again" not in robots.texts()[0]
    assert "sent again" in robots.texts()[1]
    assert states(ledger) == ["sent"]


def test_no_answer_may_mean_that_it_came_so_the_next_try_says_that_it_is_one(
    sqlite_ledger: Engine, robots: Robots, tmp_path: Path
) -> None:
    told = settings(robots, tmp_path, "slack")
    open_episodes(sqlite_ledger, told, surge())
    robots.silent = 1
    assert deliver(sqlite_ledger, told, NOW, pause_seconds=0) == [Sent("slack", 1)]
    assert ["sent again" in text for text in robots.texts()] == [False, True]


def test_one_channel_that_fails_keeps_no_other_waiting(
    sqlite_ledger: Engine, robots: Robots, tmp_path: Path
) -> None:
    told = settings(robots, tmp_path, "wecom", "slack")
    open_episodes(sqlite_ledger, told, surge())
    robots.refusals.append(REFUSED)
    wecom, slack = deliver(sqlite_ledger, told, NOW, tries=1)
    assert wecom.error is not None
    assert slack == Sent("slack", 1)


def test_a_mail_goes_through_the_outbox_once(sqlite_ledger: Engine, robots: Robots, tmp_path: Path) -> None:
    told = settings(robots, tmp_path, alert_channels={"ops": "mailto:ops@example.com"}, mail_language="zh")
    open_episodes(sqlite_ledger, told, surge())
    assert deliver(sqlite_ledger, told, NOW) == [Sent("ops", 1)]
    assert deliver(sqlite_ledger, told, NOW) == []
    (file,) = (tmp_path / "outbox").glob("alert-*.eml")
    mail = message_from_bytes(file.read_bytes(), policy=default)
    assert mail["To"] == "ops@example.com"
    assert mail["Subject"].startswith("Tallybook:1 条告警 · [新增] 用户 user-a ")
    assert "用户 user-a 在 2026-11-21 使用 50,000 个 token" in mail.get_content()


def test_the_subject_of_a_storm_tells_of_an_alert(
    sqlite_ledger: Engine, robots: Robots, tmp_path: Path
) -> None:
    told = settings(robots, tmp_path, alert_channels={"ops": "mailto:ops@example.com"})
    open_episodes(sqlite_ledger, told, *(surge(f"user-{number:02}") for number in range(30)))
    deliver(sqlite_ledger, told, NOW)
    (file,) = (tmp_path / "outbox").glob("alert-*.eml")
    mail = message_from_bytes(file.read_bytes(), policy=default)
    assert mail["Subject"].startswith("Tallybook: 30 alerts · [NEW] user user-00 used 50,000 tokens")
    assert mail.get_content().splitlines()[-1] == "and 10 more"


def test_a_long_message_that_comes_again_says_so_and_how_many_changes_it_leaves_out(
    sqlite_ledger: Engine, robots: Robots, tmp_path: Path
) -> None:
    told = settings(robots, tmp_path, "wecom")
    open_episodes(sqlite_ledger, told, *(surge(f"user-{n:02}-{'x' * 90}") for n in range(30)))
    robots.silent = 1
    assert deliver(sqlite_ledger, told, NOW, pause_seconds=0) == [Sent("wecom", 30)]
    text = robots.texts()[-1]
    assert "sent again" in text
    assert text.endswith(f"and {30 - text.count('[NEW]')} more")


@pytest.mark.parametrize(
    ("hours", "at", "until"),
    [
        ("22:00-08:00", "2026-11-21T13:59Z", None),
        ("22:00-08:00", "2026-11-21T14:00Z", "2026-11-22T00:00Z"),
        ("22:00-08:00", "2026-11-21T23:59Z", "2026-11-22T00:00Z"),
        ("22:00-08:00", "2026-11-22T00:00Z", None),
        ("12:00-13:30", "2026-11-21T04:00Z", "2026-11-21T05:30Z"),
        (None, "2026-11-21T14:00Z", None),
    ],
)
def test_quiet_hours_are_those_of_the_billing_time_zone(
    robots: Robots, tmp_path: Path, hours: str | None, at: str, until: str | None
) -> None:
    def moment(text: str) -> datetime:
        return datetime.fromisoformat(text.replace("Z", "+00:00"))

    told = settings(robots, tmp_path, alert_quiet_hours=hours)
    assert end_of_quiet(told, moment(at)) == (until and moment(until))


def test_at_night_only_what_is_urgent_is_told_and_the_rest_in_the_morning(
    sqlite_ledger: Engine, robots: Robots, tmp_path: Path
) -> None:
    told = settings(robots, tmp_path, "slack", alert_quiet_hours="22:00-08:00")
    night, morning = NOW + 12 * HOUR, NOW + 20 * HOUR
    mismatch = Finding("mismatch", "day", "2026-11-20", 1, {"difference": "1 token"})
    open_episodes(sqlite_ledger, told, surge(), mismatch, now=night)
    assert deliver(sqlite_ledger, told, night) == [Sent("slack", 1)]
    assert "does not add up" in robots.texts()[0]
    assert deliver(sqlite_ledger, told, morning) == [Sent("slack", 1)]
    assert "user-a" in robots.texts()[1]


def test_simulated_usage_is_told_as_such(sqlite_ledger: Engine, robots: Robots, tmp_path: Path) -> None:
    told = settings(robots, tmp_path, "webhook")
    with writing(sqlite_ledger) as connection:
        mark_simulated(connection, {})
    open_episodes(sqlite_ledger, told, replace(surge(), level=3))
    deliver(sqlite_ledger, told, NOW)
    assert "Simulated usage" in robots.texts()[0]
    assert robots.came[0][1]["simulated"] is True
    json.dumps(robots.came[0][1])


@pytest.mark.parametrize(
    "address", ["slack+x", "https://hooks.example.com/x", "mailto:nobody", "irc+https://x"]
)
def test_a_channel_without_a_usable_address_is_refused_without_showing_it(address: str) -> None:
    with pytest.raises(ValidationError, match="ops must be like") as refused:
        BillingSettings(alert_channels={"ops": SecretStr(address)})
    assert address not in refused.value.errors()[0]["msg"]


@pytest.mark.parametrize("hours", ["22-8", "24:00-08:00", "08:00-08:00", "22:00-08:00 "])
def test_what_is_no_span_of_hours_is_refused(hours: str) -> None:
    with pytest.raises(ValidationError, match="22:00-08:00"):
        BillingSettings(alert_quiet_hours=hours)
