"""Costs, budgets, wallets and recounts as a person types them."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from billing.budgets import read_budgets
from billing.costs.file import read_costs
from billing.ingest import ingest
from billing.ledger import open_ledger
from tallybook.calendar import today
from tallybook.cli import main
from tests.apis import export
from tests.billing.conftest import TIME_ZONE
from tests.billing.factories import DAY, ZONE, an_event, write_segment
from tests.billing.test_recount import captured
from training.cost import PoolPrice, Run, write_event

ROOT = Path(__file__).parents[2]
COSTS = """
currency = "CNY"
[[pools]]
name = "serving"
effective_from = 2026-01-01
devices = 1
price_per_device_hour = "1.00"
models = ["review-sentiment"]
"""
BUDGETS = 'currency = "CNY"\n[[budgets]]\nproject = "search"\neffective_from = "2026-01"\namount = "5.00"\n'

Run_ = Callable[..., Result]


@pytest.fixture
def tallybook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run_:
    """Run a command with every setting that names a place pointing into a fresh folder."""
    places = {
        "TALLYBOOK_LEDGER_URL": f"sqlite:///{tmp_path / 'ledger.db'}",
        "TALLYBOOK_COSTS_FILE": tmp_path / "costs.toml",
        "TALLYBOOK_BUDGETS_FILE": tmp_path / "budgets.toml",
        "TALLYBOOK_TRAINING_DIR": tmp_path / "training",
        "TALLYBOOK_MODELS_DIR": tmp_path / "models",
        "TALLYBOOK_TIME_ZONE": TIME_ZONE,
    }
    for name, place in places.items():
        monkeypatch.setenv(name, str(place))
    (tmp_path / "costs.toml").write_text(COSTS)
    (tmp_path / "budgets.toml").write_text(BUDGETS)
    return lambda *words: CliRunner().invoke(main, words)


def stored(folder: Path, *events: object) -> None:
    write_segment(folder / "journal", events)  # type: ignore[arg-type]
    ledger = open_ledger(f"sqlite:///{folder / 'ledger.db'}", TIME_ZONE)
    ingest(ledger, folder / "journal", ZONE)
    ledger.dispose()


def test_a_report_takes_in_what_waits_and_names_what_it_had_to_leave(tallybook: Run_, tmp_path: Path) -> None:
    stored(tmp_path, an_event(), an_event(time=an_event().time + timedelta(days=1)))
    (tmp_path / "training").mkdir()
    run = Run("review-sentiment", "1", "cpu", 1.0, 1800.0, 5, "x")
    write_event(tmp_path / "training", run, PoolPrice("3.00", "CNY"))
    (tmp_path / "training" / "bad.jsonl").write_text("{")
    done = tallybook("costs", "report", f"{today(ZONE):%Y-%m}")
    assert done.exit_code == 0, done.output
    assert re.search(r"training +1\.50$", done.stdout, re.MULTILINE)
    assert "bad.jsonl left alone: training_not_json: line 1" in done.stderr
    assert "1 were there already" in tallybook("costs", "import").stdout
    day = tallybook("costs", "report", f"{DAY}")
    assert re.search(r"pool cost +24\.00$", day.stdout, re.MULTILINE)
    assert "120 tokens are on no bill yet, nor on a draft." in day.stdout
    assert max(map(len, day.stdout.splitlines())) <= 100


@pytest.mark.parametrize("period", ["2026", "2026-13", "2026-02-30", "yesterday"])
def test_a_period_is_a_day_or_a_month(tallybook: Run_, period: str) -> None:
    done = tallybook("costs", "report", period)
    assert done.exit_code == 2
    assert "is neither a day nor a month" in done.stderr


def test_budgets_are_shown_for_this_month_or_another(tallybook: Run_, tmp_path: Path) -> None:
    done = tallybook("budgets")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"Budgets of {today(ZONE):%Y-%m} in CNY;")
    assert "No budget is in force in this month." in tallybook("budgets", "2025-12").stdout
    (tmp_path / "budgets.toml").write_text(BUDGETS.replace('"5.00"', "5.00"))
    wrong = tallybook("budgets")
    assert wrong.exit_code == 1
    assert "Error: budgets_invalid: " in wrong.stderr


def test_credit_is_added_paid_back_and_shown(tallybook: Run_) -> None:
    assert (
        "search has ¥100.50."
        in tallybook(
            "wallet", "topup", "search", "100.50", "--by", "user-f", "--note", "order 7", "--currency", "CNY"
        ).stdout
    )
    back = tallybook("wallet", "refund", "search", "0.50", "--by", "user-f", "--currency", "CNY")
    assert "search has ¥100.00." in back.stdout
    shown = tallybook("wallet", "show", "search").stdout.splitlines()
    assert [line.split()[2:] for line in shown[:2]] == [
        ["topup", "¥100.50", "by", "user-f", "order", "7"],
        ["refund", "-¥0.50", "by", "user-f"],
    ]
    assert tallybook("wallet", "show").stdout.split() == ["search", "¥100.00"]


@pytest.mark.parametrize(
    ("amount", "options", "code"),
    [
        ("1.005", ["--currency", "CNY"], "wallet_invalid"), ("0", ["--currency", "CNY"], "wallet_invalid"),
        ("1e3", ["--currency", "CNY"], "wallet_invalid"), ("NaN", ["--currency", "CNY"], "wallet_invalid"),
        ("1", ["--currency", "XYZ"], "wallet_invalid"), ("1", [], "wallet_currency"),
    ],
)  # fmt: skip
def test_an_amount_that_can_not_be_booked_is_refused(
    tallybook: Run_, amount: str, options: list[str], code: str
) -> None:
    done = tallybook("wallet", "topup", "search", amount, "--by", "user-f", *options)
    assert done.exit_code == 1
    assert done.stderr.startswith(f"Error: {code}: ")
    assert tallybook("wallet", "show").stdout == "No wallet.\n"


def test_a_recount_ends_in_status_1_only_when_an_event_was_metered_otherwise(
    tallybook: Run_, tmp_path: Path
) -> None:
    export(tmp_path / "models", 1)
    honest = captured(tmp_path / "models", "hotel")
    unknown = captured(tmp_path / "models", "hotel", tokenizer_fingerprint="e" * 64)
    stored(tmp_path, honest, unknown, an_event())
    agrees = tallybook("audit", "recount", f"{DAY}")
    assert agrees.exit_code == 0, agrees.output
    assert "3 events; 1 recounted, 1 without their whole text." in agrees.stdout
    assert f"has the tokenizer {'e' * 64}: 1 events." in agrees.stdout
    forged = captured(tmp_path / "models", "hotel", prompt_tokens=999)
    stored(tmp_path, forged)
    differs = tallybook("audit", "recount", f"{DAY}")
    assert differs.exit_code == 1
    assert f"{forged.id}: metered 999 prompt tokens, recounted {honest.prompt_tokens}." in differs.stdout
    assert differs.stderr.startswith("Error: recount_differs: 1 events")


def test_the_files_that_come_with_the_project_are_read() -> None:
    assert read_costs(ROOT / "costs.toml").currency == read_budgets(ROOT / "budgets.toml").currency == "CNY"
