from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy.engine import Engine

from billing.errors import PricesError
from billing.ledger import reading, writing
from billing.prices import Price, PriceList, kept_prices, read_prices, sync_prices
from tests.billing.factories import a_price

GOOD = """
currency = "CNY"
per_tokens = 1000
[[prices]]
model = "m"
effective_from = 2026-01-01
input = "0.80"
output = "2.40"
"""


def read(tmp_path: Path, text: str) -> list[Price]:
    file = tmp_path / "prices.toml"
    file.write_text(text, "utf-8")
    return read_prices(file)


def test_a_price_list_is_read_exactly(tmp_path: Path) -> None:
    (price,) = read(tmp_path, GOOD)
    assert (price.input, price.cached_input, price.output) == (
        Decimal("0.80"), Decimal("0.80"), Decimal("2.40"),
    )  # fmt: skip
    assert (price.model, price.model_version, price.effective_from) == ("m", None, date(2026, 1, 1))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("currency = ", "Invalid value"),
        (GOOD.replace('"CNY"', '"XXX"'), "unknown currency"),
        (GOOD.replace("1000", "0"), "per_tokens"),
        (GOOD.replace('"0.80"', "0.80"), "in quotes"),
        (GOOD.replace('"0.80"', '"-1"'), "0 to 1,000,000,000"),
        (GOOD.replace('"0.80"', '"NaN"'), "0 to 1,000,000,000"),
        (GOOD.replace('"0.80"', '"cheap"'), "not a number"),
        (GOOD.replace('"0.80"', '"0.0000000000001"'), "12 decimals"),
        (GOOD.replace("input", "inptu", 1), "unknown inptu"),
        (GOOD.replace('model = "m"', 'model = "a b"'), "model must be"),
        (GOOD.replace("2026-01-01", '"2026-01-01"'), "effective_from must be a day"),
        (GOOD.replace("2026-01-01", "2026-01-01T00:00:00Z"), "effective_from must be a day"),
        (GOOD + GOOD[GOOD.index("[[") :], "a second price"),
    ],
)
def test_a_wrong_price_list_is_refused_with_its_place(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(PricesError, match=says) as refused:
        read(tmp_path, text)
    assert refused.value.code == "prices_invalid"


def test_a_missing_price_list_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(PricesError) as refused:
        read_prices(tmp_path / "none.toml")
    assert refused.value.code == "prices_missing"


def test_the_latest_price_that_has_begun_is_in_force_and_a_versions_own_comes_first() -> None:
    old = a_price()
    new = a_price(effective_from=date(2026, 6, 1), input=Decimal("0.70"))
    own = a_price(effective_from=date(2026, 3, 1), model_version="2", input=Decimal("0.10"))
    listed = PriceList([new, own, old])
    model = old.model
    assert listed.in_force(model, "1", date(2025, 12, 31)) is None
    assert listed.in_force(model, "1", date(2026, 1, 1)) == old
    assert listed.in_force(model, "1", date(2026, 5, 31)) == old
    assert listed.in_force(model, "1", date(2026, 6, 1)) == new
    assert listed.in_force(model, "2", date(2026, 2, 28)) == old
    assert listed.in_force(model, "2", date(2026, 7, 1)) == own
    assert listed.in_force("other", "1", date(2026, 7, 1)) is None


def test_equal_terms_are_one_price_version_however_they_are_written() -> None:
    assert a_price(input=Decimal("0.8")).id == a_price(input=Decimal("0.800")).id
    assert a_price(input=Decimal("0.8")).id != a_price(input=Decimal("0.81")).id


def test_a_price_that_was_never_billed_may_be_corrected(ledger: Engine) -> None:
    wrong, right = a_price(input=Decimal(80)), a_price()
    with writing(ledger) as connection:
        sync_prices(connection, [wrong])
        listed = sync_prices(connection, [right])
        assert listed.in_force(right.model, "1", date(2026, 7, 1)) == right
        sync_prices(connection, [wrong])
    with reading(ledger) as connection:
        assert kept_prices(connection) == {wrong.id: wrong, right.id: right}
