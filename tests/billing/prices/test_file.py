from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

from billing.errors import PricesError
from billing.prices.departments import DepartmentRule
from billing.prices.discounts import Discount
from billing.prices.file import read_tariff
from billing.prices.price_list import Tier
from billing.prices.tariff import Tariff

GOOD = """
currency = "CNY"
per_tokens = 1000
[[prices]]
model = "m"
effective_from = 2026-01-01
input = "0.80"
output = "2.40"
"""
FULL = """
currency = "CNY"
[[prices]]
model = "m"
label = "canary"
latency_class = "priority"
effective_from = 2026-01-01
per_tokens = 1_000_000
tiers = "volume"
input = [{ up_to = 1_000_000, price = "2" }, { up_to = 9_000_000_000, price = "1.50" }, { price = "1" }]
output = "8"
[[prices.context_bands]]
above = 200_000
input = "4"
output = "16"
cached_input = "0.40"
[[prices]]
model = "m"
version = "2"
effective_from = 2026-01-01
input = "0.80"
output = "2.40"
minimum = "0.001"
[[discounts]]
department = "retail"
model = "m"
percent = "12.5"
effective_from = 2026-02-01
[[departments]]
user = "user-a"
project = "search"
department = "wholesale"
effective_from = 2026-03-01
"""


def read(tmp_path: Path, text: str) -> Tariff:
    file = tmp_path / "prices.toml"
    file.write_text(text, "utf-8")
    return read_tariff(file)


def test_a_price_list_is_read_exactly(tmp_path: Path) -> None:
    (price,) = read(tmp_path, GOOD).prices
    assert (price.input, price.cached_input, price.output) == (
        Decimal("0.80"), Decimal("0.80"), Decimal("2.40"),
    )  # fmt: skip
    assert (price.model, price.model_version, price.effective_from) == ("m", None, date(2026, 1, 1))
    assert (price.tiers, price.minimum, price.context_band, price.latency_class) == (None, None, 0, None)


OURS = Path(__file__).parents[3] / "prices.toml"


def test_the_price_file_of_the_repository_is_read() -> None:
    assert len(read_tariff(OURS).prices) == 1


def test_its_examples_are_good(tmp_path: Path) -> None:
    listed, examples = OURS.read_text("utf-8").split("# Everything that an entry can say:\n")
    tariff = read(
        tmp_path, listed + examples.replace("# ", "", 1).replace("\n# ", "\n").replace("\n#\n", "\n")
    )
    assert (len(tariff.prices), len(tariff.discounts), len(tariff.rules)) == (4, 1, 1)


def test_tiers_bands_classes_minimums_discounts_and_rules_are_read(tmp_path: Path) -> None:
    tariff = read(tmp_path, FULL)
    short, long, version = tariff.prices
    assert (short.model_label, short.latency_class, short.per_tokens) == ("canary", "priority", 1_000_000)
    assert (short.tiers, short.context_band) == ("volume", 0)
    assert short.input == (
        Tier(1_000_000, Decimal(2)), Tier(9_000_000_000, Decimal("1.50")), Tier(None, Decimal(1)),
    )  # fmt: skip
    assert (long.context_band, long.input, long.cached_input) == (200_001, Decimal(4), Decimal("0.40"))
    assert (long.model_label, long.latency_class) == ("canary", "priority")
    assert (version.model_version, version.minimum) == ("2", Decimal("0.001"))
    assert tariff.discounts == (Discount("retail", "m", Decimal("12.5"), date(2026, 2, 1)),)
    assert tariff.rules == (DepartmentRule("user-a", "search", "wholesale", date(2026, 3, 1)),)


LAST = FULL.rindex("[[discounts]]")
RULE = FULL.rindex("[[departments]]")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("currency = ", "Invalid value"),
        (GOOD.replace('"CNY"', '"XXX"'), "unknown currency"),
        (GOOD.replace("1000", "0"), "per_tokens"),
        (GOOD.replace('"0.80"', "0.80"), "1: write input in quotes"),
        (GOOD.replace('"0.80"', '"-1"'), "without a sign"),
        (GOOD.replace('"0.80"', '"NaN"'), "write input"),
        (GOOD.replace('"0.80"', '"0.0000000000001"'), "12 decimals"),
        (GOOD.replace("input", "inptu", 1), "unknown inptu"),
        (GOOD.replace("input", "cached_input", 1), "input is missing"),
        (GOOD.replace('model = "m"', 'model = "a b"'), "model must be"),
        (GOOD.replace("2026-01-01", '"2026-01-01"'), "effective_from must be a day"),
        (GOOD.replace("2026-01-01", "2026-01-01T00:00:00Z"), "effective_from must be a day"),
        (GOOD + GOOD[GOOD.index("[[") :], r"\[\[prices\]\] 2: a second one for m, 2026-01-01"),
        (GOOD + 'currency = "USD"', "currency must be the file's"),
        (GOOD + 'version = "1"\nlabel = "canary"', "a version or a label"),
        (GOOD + 'tiers = "graduated"', "every price is flat"),
        (FULL.replace('"volume"', '"stepped"'), '"graduated" or "volume"'),
        (FULL.replace('tiers = "volume"', ""), "input has tiers: say"),
        (FULL.replace(', { price = "1" }', ""), "the last tier of input must have no up_to"),
        (FULL.replace("9_000_000_000", "1_000_000"), "up_to must rise"),
        (FULL.replace("9_000_000_000", "1_000_000_000_000_001"), "up_to must be a whole number from 0 to"),
        (FULL.replace("up_to = 1_000_000, ", ""), "up_to must rise"),
        (FULL.replace('"1.50"', "1.50"), r"\[\[input\]\] 2: write price in quotes"),
        (FULL.replace("above = 200_000", "above = 150_000"), "above must be one of 32768, 65536"),
        (FULL.replace('output = "16"', ""), r"\[\[context_bands\]\] 1: output is missing"),
        (FULL.replace('output = "8"', 'output = "8"\nminimum = "1"'), "can't go with tiers"),
        (FULL.replace('"0.001"', "0.001"), "write minimum in quotes"),
        (FULL.replace('"12.5"', '"100.1"'), r"\[\[discounts\]\] 1: percent must be 0 to 100"),
        (FULL.replace('"12.5"', "12.5"), "write percent in quotes"),
        (FULL + FULL[LAST:RULE], "a second one for retail, m, 2026-02-01"),
        (FULL + FULL[RULE:], "a second one for user-a, search, 2026-03-01"),
        (FULL.replace('user = "user-a"\nproject = "search"', ""), "user, project, or both"),
        (FULL.replace('department = "wholesale"', ""), "department must be"),
    ],
)
def test_a_wrong_price_list_is_refused_with_its_place(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(PricesError, match=says) as refused:
        read(tmp_path, text)
    assert refused.value.code == "prices_invalid"


def test_a_missing_price_list_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(PricesError) as refused:
        read_tariff(tmp_path / "none.toml")
    assert refused.value.code == "prices_missing"
