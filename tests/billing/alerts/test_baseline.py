"""The baseline of a day: robust, by weekday, and silent where too little is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from billing.alerts.baseline import SurgeRule, judge

RULE = SurgeRule(floor_tokens=1_000)
WEEK = (10_000, 10_000, 10_000, 10_000, 10_000, 2_000, 1_000)  # Monday to Sunday


def weeks(count: int, week: tuple[int, ...] = WEEK) -> NDArray[np.int64]:
    return np.array([week * count], np.int64)


def is_surge(before: NDArray[np.int64], now: int, rule: SurgeRule = RULE) -> bool:
    return bool(judge(before, np.array([now]), rule).surges[0])


@pytest.mark.parametrize(
    ("now", "surge"), [(39_999, False), (40_000, True), (10_000, False), (0, False)], ids=str
)
def test_a_monday_is_held_against_mondays(now: int, surge: bool) -> None:
    assert is_surge(weeks(8), now) is surge


def test_a_sunday_is_held_against_sundays_yet_must_be_unheard_of() -> None:
    before = weeks(8)[:, :-1]  # the next day is a Sunday
    told = judge(before, np.array([24_000]), RULE)
    assert told.baseline[0] == 1_000
    assert not told.surges[0]  # 24 times its Sundays, and not 2.5 times its working days
    assert is_surge(before, 25_000)


def test_one_surge_before_does_not_hide_the_next() -> None:
    before = weeks(8)
    before[0, -14] = 400_000
    assert is_surge(before, 40_000)


def test_two_odd_days_of_a_weekday_do_not_hide_a_surge() -> None:
    before = weeks(8)
    before[0, [-7, -14, -21]] = 24_000  # of eight Mondays; the other days are as steady as ever
    before[0, [-28, -35]] = 0
    assert is_surge(before, 62_000)


@pytest.mark.parametrize(("days", "known"), [(27, False), (28, True)])
def test_nothing_is_said_before_four_weeks_are_known(days: int, known: bool) -> None:
    before = np.concatenate([np.zeros((1, 28), np.int64), np.full((1, days), 10_000)], axis=1)
    told = judge(before, np.array([900_000]), RULE)
    assert bool(told.surges[0]) is known
    assert np.isnan(told.baseline[0]) == (not known)


def test_days_before_the_first_usage_are_not_days_without_usage() -> None:
    before = np.concatenate([np.zeros((1, 28), np.int64), np.full((1, 28), 10_000)], axis=1)
    assert judge(before, np.array([0]), RULE).baseline[0] == 10_000


def test_who_seldom_asks_is_held_against_the_days_with_usage() -> None:
    before = np.zeros((1, 56), np.int64)
    before[0, ::9] = 10_000
    told = judge(before, np.array([20_000]), RULE)
    assert told.baseline[0] == 10_000
    assert not told.surges[0]


def test_a_small_day_is_no_surge_however_far_it_rises() -> None:
    assert not is_surge(weeks(8, (10,) * 7), 999)
    assert is_surge(weeks(8, (10,) * 7), 1_000)


def test_who_varies_much_must_rise_further() -> None:
    steady, wild = weeks(8, (10_000,) * 7), weeks(8, (10_000,) * 7)
    wild[0, ::3] = 2_000
    wild[0, 1::6] = 18_000
    assert judge(wild, np.array([0]), RULE).bound[0] > judge(steady, np.array([0]), RULE).bound[0]


def test_many_subjects_are_judged_as_each_alone() -> None:
    chance = np.random.default_rng(5)
    before, now = chance.integers(0, 50_000, (50, 56)), chance.integers(0, 400_000, 50)
    together = judge(before, now, RULE)
    for row in range(50):
        alone = judge(before[row : row + 1], now[row : row + 1], RULE)
        assert alone.surges[0] == together.surges[row]
        assert alone.bound[0] == together.bound[row]


def test_the_first_day_ever_has_no_surges() -> None:
    told = judge(np.zeros((2, 0), np.int64), np.array([5, 10**9]), RULE)
    assert not told.surges.any()
    assert judge(np.zeros((0, 56), np.int64), np.zeros(0, np.int64), RULE).surges.shape == (0,)
