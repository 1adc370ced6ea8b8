from datetime import date
from decimal import Decimal

import pytest

from billing.prices.discounts import Discount, DiscountList

LISTED = DiscountList(
    [
        Discount("retail", None, Decimal(10), date(2026, 3, 1)),
        Discount("retail", "m", Decimal(25), date(2026, 4, 1)),
        Discount("retail", "m", Decimal(0), date(2026, 6, 1)),
    ]
)


@pytest.mark.parametrize(
    ("department", "model", "day", "percent"),
    [
        ("retail", "m", date(2026, 2, 28), 0),
        ("retail", "m", date(2026, 3, 1), 10),
        ("retail", "m", date(2026, 4, 1), 25),
        ("retail", "other", date(2026, 4, 1), 10),
        ("retail", "m", date(2026, 6, 1), 0),  # its own 0 comes before the department's 10
        ("wholesale", "m", date(2026, 6, 1), 0),
    ],
)
def test_a_later_discount_replaces_and_the_models_own_comes_first(
    department: str, model: str, day: date, percent: int
) -> None:
    assert LISTED.in_force(department, model, day) == percent
