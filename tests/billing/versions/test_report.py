"""Versions side by side: what is known of each, and whether the newer one paid."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from fractions import Fraction
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy.engine import Engine

from billing.aggregates import roll_up
from billing.errors import VersionsError
from billing.ledger import open_ledger, reading, writing
from billing.versions.report import (
    VersionUse,
    compared,
    quality_of,
    tell_versions,
    verdict,
    version_report,
)
from tallybook.cli import main
from tests.billing.conftest import TIME_ZONE
from tests.billing.days import at, bring, draft
from tests.billing.factories import DAY, a_price, an_event

OLD = VersionUse(
    "1", ("stable",), date(2026, 9, 1), date(2026, 9, 30), 1_000, 0, 100_000, 20_000, 0.2, 0.5, 5_000,
    120_000, "CNY", Fraction("0.80"),
)  # fmt: skip


def card(models: Path, version: str, text: str) -> None:
    file = models / "review-sentiment" / version / "assets.extra" / "model_card.json"
    file.parent.mkdir(parents=True)
    file.write_text(text)


def test_a_version_is_told_by_its_tokens_times_cost_and_card(ledger: Engine, tmp_path: Path) -> None:
    old = [an_event(time=at(DAY, n % 24), duration_seconds=n / 100) for n in range(100)]
    new = [an_event(model_version="2", model_label="canary", completion_tokens=10) for _ in range(4)]
    nothing = {"prompt_tokens": 0, "completion_tokens": 0, "status": 500, "duration_seconds": 9.0}
    failed = an_event(model_version="2", model_label="canary", **nothing)
    bring(ledger, [*old, *new, failed, an_event(model="another")])
    draft(ledger, DAY)
    card(tmp_path, "2", json.dumps({"metrics": {"test": {"accuracy": 0.87}}}))
    with reading(ledger) as connection:
        first, second = version_report(connection, "review-sentiment", tmp_path, DAY, DAY)
    assert (first.version, first.requests, first.failed, first.quality) == ("1", 100, 0, None)
    assert (first.median_seconds, first.slow_seconds) == (0.49, 0.94)
    # 10,000 input at 0.80 and 2,000 output at 2.40 per 1,000.
    assert (first.amount_minor, first.currency) == (1280, "CNY")
    assert (second.labels, second.requests, second.failed) == (("canary",), 5, 1)
    assert (second.median_seconds, second.amount_minor) == (0.01, 42)
    assert second.quality == Fraction("0.87")


def test_a_version_without_a_price_has_no_cost(sqlite_ledger: Engine, tmp_path: Path) -> None:
    bring(sqlite_ledger, [an_event(), an_event(model_version="2")])
    draft(sqlite_ledger, DAY, [a_price(model_version="1")])
    with reading(sqlite_ledger) as connection:
        first, second = version_report(connection, "review-sentiment", tmp_path, DAY, DAY)
    assert (first.amount_minor is None, second.amount_minor) == (False, None)
    assert "cost a request" not in {change.what for change in compared(first, second)}


def test_tokens_that_are_on_no_bill_yet_do_not_make_a_version_cheap(ledger: Engine, tmp_path: Path) -> None:
    bring(ledger, [an_event() for _ in range(10)] + [an_event(model_version="2")])
    draft(ledger, DAY)
    bring(ledger, [an_event(model_version="2") for _ in range(9)])
    with writing(ledger) as connection:
        roll_up(connection)
        uses = version_report(connection, "review-sentiment", tmp_path, DAY, DAY)
    assert [(use.amount_minor, use.rated_tokens, use.tokens) for use in uses] == [
        (128, 1_200, 1_200), (13, 120, 1_200),
    ]  # fmt: skip
    text = tell_versions("review-sentiment", uses, DAY, DAY)
    assert [line.split()[-2] for line in text.splitlines()[3:5]] == ["¥128.00", "¥130.00"]  # 0.13 is rounded
    assert "Of version 2, 120 of 1,200 tokens have an amount; the others are taken to cost as much." in text
    assert "It paid" not in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"median_seconds": 0.1}, "It paid: better in median answer time, worse in nothing."),
        ({"amount_minor": 6_000}, "It did not pay: worse in cost a request, better in nothing."),
        (
            {"amount_minor": 6_000, "quality": Fraction("0.85")},
            "It depends: better in quality; worse in cost a request.",
        ),
        ({"amount_minor": 5_001, "quality": Fraction("0.804")}, "No difference that matters."),
        (
            {"requests": 2_000, "amount_minor": 10_000, "rated_tokens": 20_000, "prompt_tokens": 0},
            "No difference that matters.",
        ),
        (
            {"requests": 0, "amount_minor": None, "median_seconds": None, "quality": None},
            "Whether it paid can't",
        ),
    ],
)
def test_the_verdict_weighs_cost_time_and_quality(changes: dict[str, object], said: str) -> None:
    assert verdict(compared(OLD, replace(OLD, version="2", **changes))).startswith(said)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"metrics": {}}', '{"metrics": {"test": {"accuracy": "high"}}}',
     '{"metrics": {"test": {"accuracy": 87}}}', '{"metrics": {"test": {"accuracy": NaN}}}'],
)  # fmt: skip
def test_a_card_that_does_not_say_says_nothing(tmp_path: Path, text: str) -> None:
    card(tmp_path, "1", text)
    assert quality_of(tmp_path / "review-sentiment" / "1") is None


def test_a_model_that_nobody_used_is_told(sqlite_ledger: Engine, tmp_path: Path) -> None:
    with pytest.raises(VersionsError) as refused, reading(sqlite_ledger) as connection:
        version_report(connection, "review-sentiment", tmp_path, DAY, DAY)
    assert refused.value.code == "model_unused"


def test_the_command_tells_each_version_against_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TALLYBOOK_LEDGER_URL", f"sqlite:///{tmp_path / 'ledger.db'}")
    monkeypatch.setenv("TALLYBOOK_MODELS_DIR", str(tmp_path))
    ledger = open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}", TIME_ZONE)
    bring(ledger, [an_event(), an_event(model_version="2", completion_tokens=80, duration_seconds=0.02)])
    draft(ledger, DAY)
    told = CliRunner().invoke(main, ["versions", "report", "review-sentiment", "--to", str(DAY)])
    assert told.exit_code == 0, told.output
    # 0.13 and 0.27, and 120 and 180 tokens.
    changes = "cost a request +107.7%, tokens a request +50.0%, median answer time +100.0%"
    assert f"2 against 1: {changes}." in told.output
    assert "It did not pay: worse in cost a request, median answer time, better in nothing." in told.output
