from datetime import date
from decimal import Decimal

import pytest

from billing.prices.price_list import Price, PriceList, Tier
from tests.billing.factories import a_price

DAY = date(2026, 7, 1)
MODEL = a_price().model


def test_the_latest_price_that_has_begun_is_in_force_and_a_versions_own_comes_first() -> None:
    old = a_price()
    new = a_price(effective_from=date(2026, 6, 1), input=Decimal("0.70"))
    own = a_price(effective_from=date(2026, 3, 1), model_version="2", input=Decimal("0.10"))
    listed = PriceList([new, own, old])
    assert listed.in_force(MODEL, "1", date(2025, 12, 31)) is None
    assert listed.in_force(MODEL, "1", date(2026, 1, 1)) == old
    assert listed.in_force(MODEL, "1", date(2026, 5, 31)) == old
    assert listed.in_force(MODEL, "1", date(2026, 6, 1)) == new
    assert listed.in_force(MODEL, "2", date(2026, 2, 28)) == old
    assert listed.in_force(MODEL, "2", date(2026, 7, 1)) == own
    assert listed.in_force("other", "1", date(2026, 7, 1)) is None


GENERAL = a_price()
URGENT = a_price(latency_class="priority", input=Decimal(2))
CANARY = a_price(model_label="canary", input=Decimal(3))
CANARY_URGENT = a_price(model_label="canary", latency_class="priority", input=Decimal(4))
VERSION = a_price(model_version="2", input=Decimal(5))


@pytest.mark.parametrize(
    ("version", "label", "latency_class", "expected"),
    [
        ("1", "", "standard", GENERAL),
        ("1", "", "batch", GENERAL),
        ("1", "", "priority", URGENT),
        ("1", "stable", "standard", GENERAL),
        ("1", "canary", "standard", CANARY),
        ("1", "canary", "priority", CANARY_URGENT),
        ("2", "", "standard", VERSION),
        ("2", "canary", "standard", VERSION),
        ("2", "", "priority", VERSION),  # what it is comes before how fast it had to be
    ],
)
def test_the_most_specific_price_holds(version: str, label: str, latency_class: str, expected: Price) -> None:
    listed = PriceList([GENERAL, URGENT, CANARY, CANARY_URGENT, VERSION])
    assert listed.in_force(MODEL, version, DAY, model_label=label, latency_class=latency_class) == expected


@pytest.mark.parametrize(
    ("band", "expected"), [(0, 0), (32_769, 32_769), (65_537, 32_769), (200_001, 200_001)]
)
def test_a_long_input_has_the_price_of_the_highest_bound_below_it(band: int, expected: int) -> None:
    listed = PriceList([a_price(context_band=bound) for bound in (0, 32_769, 200_001)])
    found = listed.in_force(MODEL, "1", DAY, context_band=band)
    assert found is not None
    assert found.context_band == expected


def test_a_later_price_brings_its_own_bands() -> None:
    later = a_price(effective_from=date(2026, 6, 1))
    listed = PriceList([a_price(), a_price(context_band=32_769, input=Decimal(9)), later])
    assert listed.in_force(MODEL, "1", DAY, context_band=32_769) == later


def test_equal_terms_are_one_price_version_however_they_are_written() -> None:
    assert a_price(input=Decimal("0.8")).id == a_price(input=Decimal("0.800")).id


TIERED = a_price(tiers="graduated", input=(Tier(10, Decimal(1)), Tier(None, Decimal(2))))


def test_other_terms_are_another_price_version() -> None:
    others = [
        a_price(),
        a_price(input=Decimal("0.81")),
        a_price(output=Decimal("0.81")),
        a_price(model_version="1"),
        a_price(model_label="1"),
        a_price(latency_class="1"),
        a_price(context_band=32_769),
        a_price(per_tokens=1),
        a_price(currency="USD"),
        a_price(effective_from=DAY),
        a_price(minimum=Decimal(0)),
        TIERED,
        a_price(tiers="volume", input=TIERED.input),
        a_price(tiers="graduated", input=(Tier(11, Decimal(1)), Tier(None, Decimal(2)))),
    ]
    assert len({price.id for price in others}) == len(others)
