"""Checking for alerts: sum up, look, change episodes, and put what changed into the outbox."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone

from sqlalchemy.engine import Engine

from billing.alerts.episodes import Changed, update
from billing.alerts.notifications import put_out
from billing.alerts.rules import RULES, WINDOW, Finding, Scene
from billing.alone import alone
from billing.day_sums import sum_days
from billing.errors import BillingError
from billing.ledger import hold_events, reading, writing
from billing.settings import BillingSettings
from tallybook.calendar import ONE_DAY, billing_day

_LOCK_KEY = 7_411_402_560  # who holds it is the only one to check


@dataclass(frozen=True)
class Checked:
    """What a check has found and changed; `failed`: rules that could not look, and why."""

    findings: list[Finding]
    changes: list[Changed]
    failed: dict[str, str]


def check(ledger: Engine, settings: BillingSettings, now: datetime | None = None) -> Checked:
    """Look at everything once; changes of episodes and what is to be told of them are one transaction.

    Safe to run again and in parallel: an episode is opened once, and a change is told once a channel. A
    rule that can't look leaves its episodes as they are, and keeps no other rule from looking.
    """
    now = now or datetime.now(timezone.utc)
    findings: list[Finding] = []
    looked: set[str] = set()
    failed: dict[str, str] = {}
    today = billing_day(now, settings.zone)
    with alone(ledger, _LOCK_KEY, "check"):
        with writing(ledger) as connection:
            # The window reaches further back than the month of a quota.
            sum_days(connection, today - WINDOW - ONE_DAY, today)
        # All rules see one state: events that come meanwhile must not look like a bill that is wrong.
        with reading(ledger) as connection:
            hold_events(connection)
            scene = Scene(connection, settings, now)
            for name, (rule, makes) in RULES.items():
                try:
                    findings += rule(scene)
                    looked |= makes
                except BillingError as error:
                    failed[name] = f"{error.code}: {error}"
        with writing(ledger) as connection:
            changes = update(connection, findings, looked, now)
            put_out(connection, settings, changes, now)
    return Checked(findings, changes, failed)
