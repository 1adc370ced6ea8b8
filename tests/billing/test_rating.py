from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.money import charge
from billing.rating import UNRATED, Charge, Usage, difference, rate
from tests.billing.factories import a_price


def test_cached_tokens_are_part_of_the_input_and_charged_once() -> None:
    quantities = Usage(prompt_tokens=1_000, cached_tokens=400, completion_tokens=50).quantities()
    assert quantities == {"input": 600, "cached_input": 400, "output": 50}


@pytest.mark.parametrize(
    ("direction", "amount_minor"), [("input", 80), ("cached_input", 20), ("output", 240)]
)
def test_each_direction_has_its_price(direction: str, amount_minor: int) -> None:
    rated = rate(direction, 1_000, a_price())
    assert (rated.amount_minor, rated.currency, rated.price_id) == (amount_minor, "CNY", a_price().id)


def test_tokens_without_a_price_are_kept_without_an_amount() -> None:
    assert rate("input", 1_000, None) == Charge(UNRATED, 1_000)


@given(st.lists(st.integers(1, 10**7), min_size=1, max_size=12), st.decimals(0, 100, places=6))
def test_bills_of_any_split_of_the_usage_sum_to_the_price_of_the_sum(
    arrivals: list[int], unit_price: Decimal
) -> None:
    price = a_price(input=unit_price)
    arrived, billed = 0, Charge(price.id, 0, unit_price, 1000, "CNY", 0)
    for tokens in arrivals:
        arrived += tokens
        rest = difference(rate("input", arrived, price), billed)
        assert rest is not None
        billed = Charge(
            price.id, billed.quantity_tokens + rest.quantity_tokens, unit_price, 1000, "CNY",
            (billed.amount_minor or 0) + (rest.amount_minor or 0),
        )  # fmt: skip
    assert billed.quantity_tokens == sum(arrivals)
    assert billed.amount_minor == charge(sum(arrivals), unit_price, 1000, "CNY")


def test_nothing_is_owed_twice() -> None:
    owed = rate("input", 1_000, a_price())
    assert difference(owed, owed) is None


def test_tokens_that_got_a_price_leave_the_unrated() -> None:
    assert difference(None, Charge(UNRATED, 70)) == Charge(UNRATED, -70)
