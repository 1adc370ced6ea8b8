"""Cost recovery in numbers: what pools cost, what of it was idle, and what came back."""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.costs.file import CostList, Pool
from billing.costs.recovery import Sums, add_up, recover
from billing.money import shown

DAY = date(2026, 11, 1)
HOURS = 3600


def a_pool(**changes: object) -> Pool:
    """Two devices of 12.50 an hour for `reviews`, 1,000 tokens a second, from DAY on, unless changed."""
    terms: dict[str, object] = {
        "name": "gpu", "effective_from": DAY, "devices": 2, "price_per_device_hour": Decimal("12.50"),
        "models": ("reviews",), "tokens_per_second": {"reviews": Decimal(1000)},
    }  # fmt: skip
    return Pool(**{**terms, **changes})  # type: ignore[arg-type]


def one_day(hours: int = 24) -> dict[date, Fraction]:
    return {DAY: Fraction(hours * HOURS)}


def test_a_half_busy_pool_is_half_idle_and_every_number_follows() -> None:
    sums = Sums(
        tokens=43_200_000, billed=Fraction(900), draft=Fraction(100), runs=1, training_cost=Fraction(60)
    )
    [pool], elsewhere = recover(one_day(), CostList("CNY", [a_pool()]), [(DAY, "reviews", sums)])
    assert elsewhere == {}
    assert pool.device_hours == 48
    assert pool.whole.cost == 600
    assert pool.utilisation == Fraction(1, 2)
    assert pool.idle_cost == 300
    assert pool.whole.margin == 900 - 600 - 60
    assert pool.whole.unit_cost == Fraction(600, 43_200)
    assert pool.whole.break_even == Fraction(660, 43_200)
    assert pool.models["reviews"] == pool.whole


@pytest.mark.parametrize(("hours", "cost"), [(23, 575), (24, 600), (25, 625)])
def test_a_day_costs_the_hours_that_the_calendar_gives_it(hours: int, cost: int) -> None:
    [pool], _ = recover(one_day(hours), CostList("CNY", [a_pool()]), [])
    assert pool.whole.cost == cost
    assert pool.utilisation == 0
    assert pool.idle_cost == cost
    assert (pool.whole.unit_cost, pool.whole.break_even) == (None, None)  # nothing was used


def test_models_share_a_pool_by_the_time_they_keep_it_busy_not_by_their_tokens() -> None:
    shared = a_pool(
        models=("small", "large"), tokens_per_second={"small": Decimal(1000), "large": Decimal("62.5")}
    )
    usage = [(DAY, "small", Sums(tokens=21_600_000)), (DAY, "large", Sums(tokens=4_050_000))]
    [pool], _ = recover(one_day(), CostList("CNY", [shared]), usage)
    assert pool.busy_seconds == 6 * HOURS + 18 * HOURS
    assert pool.idle_cost == 0
    assert {model: part.cost for model, part in pool.models.items()} == {"large": 450, "small": 150}


def test_a_used_model_without_a_capacity_leaves_utilisation_idle_cost_and_shares_unknown() -> None:
    shared = a_pool(models=("reviews", "new"))
    usage = [(DAY, "reviews", Sums(tokens=100)), (DAY, "new", Sums(tokens=1))]
    [pool], _ = recover(one_day(), CostList("CNY", [shared]), usage)
    assert pool.no_capacity == ("new",)
    assert (pool.busy_seconds, pool.utilisation, pool.idle_cost) == (None, None, None)
    assert pool.models["reviews"].cost is None
    assert pool.models["reviews"].margin is None
    assert pool.whole.cost == 600  # what the pool costs is known all the same
    assert pool.whole.unit_cost == Fraction(600_000, 101)
    [alone], _ = recover(one_day(), CostList("CNY", [shared]), usage[1:])
    assert alone.models["new"].cost == 600  # nobody else used it


def test_a_pool_that_did_more_than_it_can_shows_it_and_has_no_negative_idle_cost() -> None:
    [pool], _ = recover(one_day(), CostList("CNY", [a_pool()]), [(DAY, "reviews", Sums(tokens=172_800_000))])
    assert pool.utilisation == 2
    assert pool.idle_cost == 0


def test_prices_models_and_capacities_change_with_the_day_they_take_effect() -> None:
    later = DAY + timedelta(1)
    costs = CostList(
        "CNY",
        [
            a_pool(),
            a_pool(effective_from=later, devices=1, tokens_per_second={"reviews": Decimal(500)}),
            a_pool(name="old", models=("old",), tokens_per_second={}),
            a_pool(name="old", models=("old",), tokens_per_second={}, effective_from=later, devices=0),
        ],
    )
    days = {DAY: Fraction(24 * HOURS), later: Fraction(24 * HOURS)}
    usage = [
        (DAY, "reviews", Sums(tokens=3_600_000)),
        (later, "reviews", Sums(tokens=3_600_000)),
        (DAY, "old", Sums(tokens=5)),
        (later, "old", Sums(tokens=7)),
    ]
    [gpu, old], elsewhere = recover(days, costs, usage)
    assert gpu.whole.cost == 900
    assert gpu.busy_seconds == 3 * HOURS
    assert old.whole.cost == 600
    assert old.whole.sums.tokens == 5
    assert elsewhere["old"].sums.tokens == 7  # its pool was given up: nobody knows what it ran on
    assert elsewhere["old"].margin is None


def test_a_model_that_was_only_trained_costs_its_training_and_no_machine_time() -> None:
    pool = a_pool(models=("reviews", "next"))
    usage = [
        (DAY, "reviews", Sums(tokens=10)),
        (DAY, "next", Sums(runs=2, unknown_runs=1, training_cost=Fraction(7, 3))),
    ]
    [found], _ = recover(one_day(), CostList("CNY", [pool]), usage)
    assert found.models["next"].cost == 0
    assert found.models["next"].margin == -Fraction(7, 3)
    assert found.models["reviews"].cost == 600
    assert found.whole.margin == -600 - Fraction(7, 3)


_sums = st.builds(
    Sums,
    tokens=st.integers(0, 10**9),
    billed=st.fractions(0, 10**6, max_denominator=100),
    training_cost=st.fractions(0, 10**6, max_denominator=10**6),
)


@given(st.lists(st.tuples(st.sampled_from("abcd"), _sums), max_size=12), st.integers(1, 10**6))
def test_the_parts_sum_to_the_pool_and_nothing_is_lost(usage: list[tuple[str, Sums]], capacity: int) -> None:
    pool = a_pool(models=tuple("abc"), tokens_per_second={m: Decimal(capacity) for m in "abc"})
    found, elsewhere = recover(
        one_day(), CostList("CNY", [pool]), [(DAY, model, sums) for model, sums in usage]
    )
    [gpu] = found
    assert add_up([gpu.whole, *elsewhere.values()]) == sum((sums for _, sums in usage), Sums())
    assert gpu.whole.cost == 600
    if gpu.whole.sums.tokens:
        assert sum(part.cost or 0 for part in gpu.models.values()) == 600
        assert sum(part.margin or 0 for part in gpu.models.values()) == gpu.whole.margin
    assert gpu.idle_cost is not None
    assert 0 <= gpu.idle_cost <= 600


@pytest.mark.parametrize(
    ("value", "places", "text"),
    [
        (Fraction(1, 3), 4, "0.3333"), (Fraction(5, 1000), 2, "0.01"), (Fraction(-5, 1000), 2, "-0.01"),
        (Fraction(4999, 10**6), 2, "0.00"), (Fraction(10**30 + 1, 2), 0, f"{(10**30 + 2) // 2}"),
    ],
)  # fmt: skip
def test_a_number_is_shown_rounded_half_away_from_zero(value: Fraction, places: int, text: str) -> None:
    assert str(shown(value, places)) == text
