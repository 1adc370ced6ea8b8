from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.money import charge, decimals, exact_price, format_amount, to_decimal

PRICES = st.decimals(0, 10**6, places=12, allow_nan=False)


@pytest.mark.parametrize(
    ("tokens", "amount_minor"),
    [(0, 0), (1_000, 80), (1_249, 100), (6, 0), (7, 1), (10**12, 80_000_000_000)],
)
def test_a_charge_is_rounded_half_up_once(tokens: int, amount_minor: int) -> None:
    assert charge(tokens, exact_price(Decimal("0.80"), 1000, "CNY")) == amount_minor


@pytest.mark.parametrize(("tokens", "amount_minor"), [(1, 1), (-1, -1), (3, 2), (-3, -2)])
def test_half_a_minor_unit_goes_away_from_zero(tokens: int, amount_minor: int) -> None:
    assert charge(tokens, exact_price(Decimal("0.005"), 1, "CNY")) == amount_minor


@given(
    st.integers(-(10**18), 10**18),
    PRICES,
    st.integers(1, 10**9),
    st.sampled_from(["CNY", "JPY", "KWD"]),
    st.decimals(0, 100, places=4),
)
def test_a_charge_is_within_half_a_minor_unit_of_the_exact_product(
    tokens: int, price: Decimal, per_tokens: int, currency: str, percent: Decimal
) -> None:
    exact = Fraction(tokens) * Fraction(price) / per_tokens * 10 ** decimals(currency)
    exact *= 1 - Fraction(percent) / 100
    charged = charge(tokens, exact_price(price, per_tokens, currency, percent))
    assert abs(charged - exact) <= Fraction(1, 2)


@given(st.integers(-(10**15), 10**15), st.sampled_from(["CNY", "JPY", "KWD"]))
def test_minor_units_and_decimals_are_the_same_amount(minor: int, currency: str) -> None:
    assert to_decimal(minor, currency) * 10 ** decimals(currency) == minor


@pytest.mark.parametrize(
    ("minor", "currency", "text"),
    [(123_450, "CNY", "¥1,234.50"), (-7, "USD", "-$0.07"), (1_200, "KRW", "1,200 KRW"), (0, "CNY", "¥0.00")],
)
def test_amounts_read_as_people_write_them(minor: int, currency: str, text: str) -> None:
    assert format_amount(minor, currency) == text


def test_an_unknown_currency_is_refused() -> None:
    with pytest.raises(ValueError, match="XXX"):
        decimals("XXX")
