"""Alerts over ten thousand projects: a check and a back-test, beside only reading what they look at."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import sqlalchemy as sa

from benchmarks.model_server import Row, row
from billing.alerts.backtest import raised
from billing.alerts.rules import WINDOW, Scene, surges
from billing.alerts.tables import usage_days
from billing.bulk import insert_rows
from billing.ledger import open_ledger, reading, writing
from billing.settings import BillingSettings

ZONE_NAME = "Asia/Shanghai"
NOW = datetime(2026, 11, 20, 23, tzinfo=ZoneInfo(ZONE_NAME))
PROJECTS, DAYS = 10_000, 90


def rows(_models_dir: Path) -> list[Row]:
    """Seconds of a check and of a back-test over `DAYS` days of `PROJECTS` projects, on SQLite."""
    settings = BillingSettings(time_zone=ZONE_NAME)
    last = NOW.date()
    with tempfile.TemporaryDirectory() as folder:
        ledger = open_ledger(f"sqlite:///{folder}/ledger.db", ZONE_NAME)
        chance = np.random.default_rng(1)
        with writing(ledger) as connection:
            for number in range(DAYS):
                day = (last - timedelta(days=number)).isoformat()
                tokens = chance.lognormal(11, 0.4, PROJECTS).astype(int).tolist()
                each = ((day, "project", f"project-{n}", 100, count) for n, count in enumerate(tokens))
                insert_rows(connection, usage_days, ("day", "kind", "name", "requests", "tokens"), each)
        with reading(ledger) as connection:

            def read(days: timedelta) -> int:
                kept = usage_days.c.day >= last - days
                columns = (usage_days.c.name, usage_days.c.day, usage_days.c.tokens)
                return len(connection.execute(sa.select(*columns).where(kept)).all())

            check = _seconds(lambda: list(surges(Scene(connection, settings, NOW))))
            plain = _seconds(lambda: read(WINDOW))
            first = last - timedelta(days=DAYS) + WINDOW
            back_test = _seconds(lambda: raised(connection, settings, first, last))
            plain_all = _seconds(lambda: read(timedelta(days=DAYS)))
        ledger.dispose()
    return [
        row(f"surges of {PROJECTS:,} projects, checked", check, "s", check / plain, "reading the 8 weeks"),
        row(
            f"the same, back-tested over {(last - first).days} days", back_test, "s", back_test / plain_all,
            "reading all days",
        ),
    ]  # fmt: skip


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    from benchmarks.__main__ import line

    for measured in rows(Path("models")):
        print(line(measured), flush=True)  # noqa: T201 -- a report
