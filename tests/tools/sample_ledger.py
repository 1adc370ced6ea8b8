"""A ledger with a realistic month: forty users of six projects, a surge, a new model, late events."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

from sqlalchemy.engine import Engine

from billing.ledger import open_ledger
from tallybook.usage import UsageEvent
from tests.billing.days import at, bring, close, draft
from tests.billing.factories import ZONE, a_price, an_event

FIRST = date(2026, 10, 20)
NORMAL = date(2026, 11, 19)
SURGE = date(2026, 11, 20)
EMPTY = date(2026, 11, 21)
EARLY = date(2026, 11, 22)
PRICES = (
    a_price(effective_from=FIRST),
    a_price(model="reply-writer", effective_from=FIRST, input=Decimal("2.40"), output=Decimal("9.60")),
)
_PROJECTS = {
    "customer-service": "operations", "search-ranking": "search", "review-moderation": "operations",
    "reply-suggestions": "retail", "market-research": "retail", "data-platform": "engineering",
}  # fmt: skip


def sample_ledger(file: Path) -> Engine:
    """Make a new SQLite ledger and fill it with the month; every day is closed, the last one early."""
    file.unlink(missing_ok=True)
    ledger = open_ledger(f"sqlite:///{file}", str(ZONE))
    chance = random.Random(20261122)  # noqa: S311 (a sample, not a secret)
    day = FIRST
    while day <= EARLY:
        if day != EMPTY:
            bring(ledger, _requests(day, chance))
        if day == SURGE:
            bring(ledger, _late(NORMAL, chance))
        draft(ledger, day, PRICES)
        close(ledger, day, PRICES, early=day == EARLY)
        day += timedelta(days=1)
    return ledger


def _requests(day: date, chance: random.Random) -> Iterator[UsageEvent]:
    busy = 240 if day.weekday() >= 5 else 400
    for _ in range(chance.randint(busy, busy + busy // 5)):
        yield _request(day, chance)
    if day == SURGE:
        for _ in range(320):
            yield _request(day, chance, user="user-17", project="search-ranking")
    if day == EARLY:
        for _ in range(40):
            yield _request(day, chance, model="trial-model", model_version="2026-11-22")


def _request(day: date, chance: random.Random, **changes: object) -> UsageEvent:
    middle, spread, last = (9, 1.5, 11) if day == EARLY else (14, 4, 23)
    hour = min(last, max(0, round(chance.gauss(middle, spread))))
    user = min(int(chance.expovariate(0.12)), 39)
    project = list(_PROJECTS)[(user + chance.randint(0, 1)) % len(_PROJECTS)]
    writes = chance.random() < 0.1
    prompt = max(8, int(chance.lognormvariate(4.6, 0.6)))
    values: dict[str, object] = {
        "time": at(day, hour, chance.randint(0, 29)),
        "user": f"user-{user + 1:02}",
        "project": project,
        "model": "reply-writer" if writes else "review-sentiment",
        "model_version": "1" if writes else str(3 if chance.random() < 0.9 else 4),
        "prompt_tokens": prompt,
        "cached_tokens": prompt // 3 if writes and chance.random() < 0.5 else 0,
        "completion_tokens": chance.randint(60, 220) if writes else chance.randint(14, 18),
    } | changes
    return an_event(department=_PROJECTS[str(values["project"])], **values)


def _late(day: date, chance: random.Random) -> Iterator[UsageEvent]:
    for _ in range(12):
        yield _request(day, chance)
