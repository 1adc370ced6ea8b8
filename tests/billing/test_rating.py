from decimal import Decimal
from fractions import Fraction
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.money import charge, exact_price
from billing.prices.price_list import Price, Tier, TierMode
from billing.rating import CONTEXT_BANDS, DIRECTIONS, Charge, Terms, context_band, quantities, top_up
from tests.billing.factories import a_price

TIERS = (Tier(1000, Decimal("0.80")), Tier(5000, Decimal("0.60")), Tier(None, Decimal("0.50")))


def tiered(mode: TierMode, tiers: tuple[Tier, ...] = TIERS) -> Price:
    return a_price(tiers=mode, input=tiers)


def test_cached_tokens_are_part_of_the_input_and_charged_once() -> None:
    assert quantities(prompt_tokens=1_000, cached_tokens=400, completion_tokens=50) == (600, 400, 50)


@pytest.mark.parametrize(
    ("prompt_tokens", "band"),
    [(0, 0), (32_768, 0), (32_769, 32_769), (65_536, 32_769), (200_000, 131_073), (10**9, 524_289)],
)
def test_a_request_is_in_the_band_whose_bound_its_input_reaches(prompt_tokens: int, band: int) -> None:
    assert context_band(prompt_tokens) == band


@given(st.integers(0, 10**9))
def test_every_request_is_in_one_band(prompt_tokens: int) -> None:
    band = context_band(prompt_tokens)
    assert band <= prompt_tokens
    assert [bound for bound in CONTEXT_BANDS if band < bound <= prompt_tokens] == []


@pytest.mark.parametrize(("direction", "amount"), [("input", 80), ("cached_input", 20), ("output", 240)])
def test_each_direction_has_its_price(direction: str, amount: int) -> None:
    assert Terms(a_price(), direction).charges(0, 1_000) == [Charge(0, 0, 1_000, amount)]


def test_nothing_used_costs_nothing() -> None:
    assert Terms(a_price(), "input").charges(500, 0) == []


@pytest.mark.parametrize(
    ("mode", "tokens", "in_tiers", "amount"),
    [
        ("graduated", 0, [0, 0, 0], 0),
        ("graduated", 1000, [1000, 0, 0], 80),
        ("graduated", 1001, [1000, 1, 0], 80),
        ("graduated", 5000, [1000, 4000, 0], 320),
        ("graduated", 7000, [1000, 4000, 2000], 420),
        ("volume", 0, [0, 0, 0], 0),
        ("volume", 1000, [1000, 0, 0], 80),
        ("volume", 1001, [0, 1001, 0], 60),
        ("volume", 5000, [0, 5000, 0], 300),
        ("volume", 7000, [0, 0, 7000], 350),
    ],
)
def test_a_months_tokens_are_priced_by_tier(
    mode: TierMode, tokens: int, in_tiers: list[int], amount: int
) -> None:
    terms = Terms(tiered(mode), "input")
    assert terms.spread(tokens) == in_tiers
    assert sum(charged.amount_minor for charged in terms.charges(0, tokens)) == amount


def test_a_volume_tier_that_is_crossed_takes_the_tokens_of_the_one_below_with_it() -> None:
    terms = Terms(tiered("volume"), "input")
    assert terms.charges(900, 600) == [Charge(0, 900, -900, -72), Charge(1, 0, 1500, 90)]


@pytest.mark.parametrize(
    ("percent", "amount"), [("0", 80), ("12.5", 70), ("33.333", 53), ("99.9", 0), ("100", 0)]
)
def test_a_discount_is_taken_off_before_the_one_rounding(percent: str, amount: int) -> None:
    assert Terms(a_price(), "input", Decimal(percent)).charges(0, 1_000)[0].amount_minor == amount


UNIT_PRICES = st.decimals(0, 100, places=6)
PERCENTS = st.decimals(0, 100, places=3)


@st.composite
def prices(draw: st.DrawFn) -> Price:
    mode = draw(st.sampled_from(["flat", "graduated", "volume"]))
    if mode == "flat":
        return a_price(input=draw(UNIT_PRICES))
    steps = draw(st.lists(st.integers(1, 10**6), max_size=4))
    tiers = [Tier(bound, draw(UNIT_PRICES)) for bound in accumulate(steps)]
    return a_price(tiers=mode, input=(*tiers, Tier(None, draw(UNIT_PRICES))))


@given(prices(), PERCENTS, st.lists(st.integers(1, 10**6), min_size=1, max_size=12))
def test_lines_of_any_split_sum_to_the_price_of_the_sum(
    price: Price, percent: Decimal, portions: list[int]
) -> None:
    terms = Terms(price, "input", percent)
    lines, before = [], 0
    for tokens in portions:
        charges = terms.charges(before, tokens)
        assert sum(charged.quantity_tokens for charged in charges) == tokens
        lines += charges
        before += tokens
    at_once = terms.charges(0, before)
    for tier in range(len(terms.unit_prices)):
        mine = [line for line in lines if line.tier == tier]
        one = [line for line in at_once if line.tier == tier]
        for column in (2, 3):  # tokens, amount
            assert sum(line[column] for line in mine) == sum(line[column] for line in one)


@given(prices(), st.integers(0, 10**7))
def test_no_token_is_lost_between_tiers(price: Price, tokens: int) -> None:
    in_tiers = Terms(price, "input").spread(tokens)
    assert sum(in_tiers) == tokens
    assert min(in_tiers) >= 0
    bounds = [tier.up_to for tier in price.tiers_of("input")]
    if price.tiers == "graduated":
        below = 0
        for bound, quantity in zip(bounds, in_tiers, strict=True):
            # Nothing is in a tier before the one below is full.
            assert bound is None or quantity <= bound - below
            below = bound or below
    if price.tiers == "volume" and tokens:
        reached = next(n for n, bound in enumerate(bounds) if bound is None or tokens <= bound)
        assert in_tiers[reached] == tokens


@pytest.mark.parametrize(
    ("requests", "count", "amount"),
    [
        ([(1000, 0, 0, 1)], 0, 0),  # costs 0.80
        ([(100, 0, 0, 1)], 1, 42),  # costs 0.08, lacks 0.42
        ([(100, 100, 0, 1)], 1, 48),  # cached: costs 0.02
        ([(100, 0, 0, 3), (1000, 0, 1000, 5)], 3, 126),
        ([(0, 0, 0, 7)], 0, 0),  # failed: no tokens, no charge
    ],
)
def test_requests_are_topped_up_to_the_minimum(
    requests: list[tuple[int, int, int, int]], count: int, amount: int
) -> None:
    found = top_up(a_price(minimum=Decimal("0.50")), Decimal(0), requests)
    assert (found.requests, charge(1, found.lacking)) == (count, amount)


COUNTS = st.tuples(st.integers(1, 3000), st.integers(0, 3000), st.integers(0, 3000), st.integers(1, 5)).map(
    lambda n: (n[0], min(n[:2]), n[2], n[3])
)


@given(st.lists(COUNTS, min_size=1, max_size=8), PERCENTS, st.decimals(0, 5, places=3))
def test_with_the_minimum_every_request_costs_at_least_that(
    requests: list[tuple[int, int, int, int]], percent: Decimal, minimum: Decimal
) -> None:
    price = a_price(minimum=minimum)
    exact = [Fraction(*exact_price(price.tiers_of(d)[0].price, 1000, "CNY", percent)) for d in DIRECTIONS]
    least = Fraction(*exact_price(minimum, 1, "CNY", percent))
    used = paid = Fraction(0)
    for prompt, cached, completion, count in requests:
        cost = sum(n * p for n, p in zip(quantities(prompt, cached, completion), exact, strict=True))
        used += cost * count
        paid += max(cost, least) * count
    assert used + Fraction(*top_up(price, percent, requests).lacking) == paid
