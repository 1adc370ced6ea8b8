"""The costs file is read strictly: nothing inexact, misspelt or ambiguous gets through."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

from billing.costs.file import Pool, read_costs
from billing.errors import CostsError

GOOD = """
currency = "CNY"

[[pools]]
name = "gpu"
effective_from = 2026-01-01
devices = 2
price_per_device_hour = "12.50"
models = ["reviews", "summary"]
tokens_per_second = { reviews = "1200.5" }
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "costs.toml"
    file.write_text(text, "utf-8")
    return file


def test_a_file_is_read_to_the_last_decimal(tmp_path: Path) -> None:
    costs = read_costs(written(tmp_path, GOOD))
    pool = Pool(
        "gpu", date(2026, 1, 1), 2, Decimal("12.50"), ("reviews", "summary"), {"reviews": Decimal("1200.5")}
    )
    assert costs.currency == "CNY"
    assert costs.in_force(date(2025, 12, 31)) == {}
    assert costs.of_models(date(2026, 1, 1)) == {"reviews": pool, "summary": pool}


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"12.50"', "12.50", "price_per_device_hour in quotes"),
        ('"12.50"', '"-1"', "without a sign"),
        ('"12.50"', '"1e2"', "without a sign"),
        ('"12.50"', '"NaN"', "without a sign"),
        ('"1200.5"', '"0"', "above 0"),
        ('"1200.5"', "1200.5", "tokens_per_second of reviews in quotes"),
        ("reviews = ", "revews = ", "not one of its models"),
        ("devices = 2", "devices = 2.0", "whole number"),
        ("devices = 2", "devices = true", "whole number"),
        ("devices", "device", "unknown device"),
        ("2026-01-01", '"2026-01-01"', "must be a day"),
        ("2026-01-01", "2026-01-01T00:00:00", "must be a day"),
        ('["reviews", "summary"]', '["reviews", "reviews"]', "a name twice"),
        ('["reviews", "summary"]', "[]", "a list of names"),
        ('"gpu"', '"g p u"', "letters"),
        ('"CNY"', '"XYZ"', "unknown currency"),
        ("[[pools]]", "[pools]", "[[pools]]"),
        ("[[pools]]", "[[pools]", "TOML|Expected|invalid"),
    ],
)
def test_what_is_wrong_is_refused_with_its_place(tmp_path: Path, old: str, new: str, told: str) -> None:
    assert old in GOOD
    with pytest.raises(CostsError, match=told.replace("[[", r"\[\[")) as caught:
        read_costs(written(tmp_path, GOOD.replace(old, new, 1)))
    assert caught.value.code == "costs_invalid"
    assert "costs.toml" in str(caught.value)


def test_a_model_is_in_one_pool_at_a_time_but_may_move(tmp_path: Path) -> None:
    second = GOOD[GOOD.index("[[pools]]") :].replace('"gpu"', '"other"')
    with pytest.raises(CostsError, match="reviews is in gpu and in other on 2026-01-01"):
        read_costs(written(tmp_path, GOOD + second))
    moved = second.replace("2026-01-01", "2026-02-01")
    left = GOOD[GOOD.index("[[pools]]") :].replace("2026-01-01", "2026-02-01")
    left = left.replace('"reviews", ', "").replace('{ reviews = "1200.5" }', "{}")
    moved = moved.replace(', "summary"', "")
    costs = read_costs(written(tmp_path, GOOD + left + moved))
    assert costs.of_models(date(2026, 1, 31))["reviews"].name == "gpu"
    assert costs.of_models(date(2026, 2, 1))["reviews"].name == "other"


def test_a_second_entry_for_the_same_day_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CostsError, match="a second gpu from 2026-01-01"):
        read_costs(written(tmp_path, GOOD + GOOD[GOOD.index("[[pools]]") :]))


def test_a_missing_file_has_a_code_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(CostsError) as caught:
        read_costs(tmp_path / "costs.toml")
    assert caught.value.code == "costs_missing"
