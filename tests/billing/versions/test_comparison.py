"""A canary beside the stable version: what counts for whom, and what is worse."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from fractions import Fraction
from pathlib import Path
from zoneinfo import ZoneInfo

import orjson
import pytest

from billing.ingest import ingest
from billing.ledger import open_ledger, reading
from billing.versions.comparison import Limits, Side, compare, judge
from tallybook.segments import committed
from tallybook.usage import UsageEvent, new_event_id

ZONE = ZoneInfo("Asia/Shanghai")
START = datetime(2026, 11, 20, 3, tzinfo=timezone.utc)
GOOD = Side(requests=1_000, errors=10, prompt_tokens=30_000, completion_tokens=20_000, seconds=0.1)


def changed(**changes: object) -> Side:
    return Side(**{**GOOD.__dict__, **changes})


@pytest.mark.parametrize(
    ("canary", "passed", "worse"),
    [
        (GOOD, True, []),
        (changed(errors=20), True, []),
        (changed(errors=21), False, ["errors 2.1% against 1.0%, at most 1.0% more"]),
        (changed(seconds=0.15), True, []),
        (changed(seconds=0.151), False, ["95% within 151 ms against 100 ms, at most 1.5 times"]),
        (changed(prompt_tokens=42_500), True, []),
        (
            changed(prompt_tokens=42_501),
            False,
            ["62.5 tokens a request against 50.0, at most 1.25 times"],
        ),
        (changed(errors=0, seconds=0.01, completion_tokens=0), True, []),
    ],
)
def test_a_canary_may_be_worse_by_a_limit_and_no_more(canary: Side, passed: bool, worse: list[str]) -> None:
    verdict = judge(GOOD, canary, Limits())
    assert verdict.passed is passed
    assert [reason.removeprefix("WORSE: ") for reason in verdict.reasons if reason[0] == "W"] == worse


@pytest.mark.parametrize(("stable", "canary"), [(199, 1_000), (1_000, 199), (0, 0)])
def test_too_few_requests_decide_nothing(stable: int, canary: int) -> None:
    verdict = judge(changed(requests=stable), changed(requests=canary, errors=199), Limits())
    assert verdict.passed is None
    assert "200 of each are needed to compare" in verdict.reasons[0]


def test_latencies_are_the_nearest_rank_and_shares_are_exact() -> None:
    assert changed(requests=3, errors=1).error_share == Fraction(1, 3)
    assert changed(requests=3, prompt_tokens=1, completion_tokens=1).tokens_per_request == Fraction(2, 3)
    assert Side().error_share == Side().tokens_per_request == 0


def test_events_count_for_their_label_and_the_canary_s_version_since_the_moment(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    journal.mkdir()
    events = [
        *(event("stable", "1", n / 100) for n in range(1, 21)),
        event("stable", "2", 0.5, minutes=-1),  # before
        *(event("canary", "2", 0.3, status=500 if n == 0 else 200) for n in range(4)),
        event("canary", "3", 9.0),  # another canary
        event(None, "1", 9.0),
    ]
    lines = b"".join(orjson.dumps(e.to_record()) + b"\n" for e in events)
    (journal / "a.jsonl").write_bytes(lines + committed(len(events)))
    ledger = open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}", ZONE.key)
    ingest(ledger, journal, ZONE)
    with reading(ledger) as connection:
        stable, canary = compare(connection, "reviews", "2", START)
        none, _ = compare(connection, "titles", "2", START)
    ledger.dispose()
    assert stable == Side(20, 0, 200, 100, 0.19)
    assert canary == Side(4, 1, 40, 20, 0.3)
    assert none == Side()


def event(label: str | None, version: str, seconds: float, minutes: int = 1, status: int = 200) -> UsageEvent:
    return UsageEvent(
        id=new_event_id(),
        source="tests",
        time=START + timedelta(minutes=minutes),
        user="user-a",
        project="search",
        department="retail",
        operation="analyze",
        model="reviews",
        model_version=version,
        model_label=label,
        tokenizer_fingerprint="f" * 64,
        prompt_tokens=10,
        completion_tokens=5,
        duration_seconds=seconds,
        client_ip="127.0.0.1",
        status=status,
    )
