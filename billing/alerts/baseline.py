"""What a day of somebody's usage is measured against: the same weekday of the weeks before, robustly. Pure.

Statistics are floats here; what is billed never is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

WEEKS = 8
_WEEK = 7
_NORMAL = 1.4826  # makes the median absolute deviation of normal values their standard deviation


@dataclass(frozen=True, slots=True)
class SurgeRule:
    """When a day is a surge: every one of these must hold.

    It has `rise` times more than its baseline (3 is +300%), at least `floor_tokens` in all, lies `spreads`
    robust deviations above the baseline, and is `unheard` times what one day in ten of the last weeks came
    to; and there were `least_weeks` weeks to know that from.
    """

    rise: float = 3.0
    floor_tokens: int = 20_000
    spreads: float = 8.0
    unheard: float = 2.5
    least_weeks: int = 4


class Judged(NamedTuple):
    """For each subject: whether its day is a surge, the baseline, and from how many tokens on it would be.

    The baseline is nan, and the bound infinite, where there is too little history.
    """

    surges: NDArray[np.bool_]
    baseline: NDArray[np.float64]
    bound: NDArray[np.float64]


def judge(before: NDArray[np.int64], now: NDArray[np.int64], rule: SurgeRule) -> Judged:
    """Judge a day of many subjects at once.

    Args:
        before: [subjects, days], the days before it, the last one being yesterday.
        now: [subjects], the day itself.
    Days before a subject's first usage don't count as days without usage. Where the same weekday is mostly
    without usage, the baseline is the median of the days that have some.
    """
    window = before[:, -WEEKS * _WEEK :].astype(np.float64)
    if not window.size:
        nothing = np.full(len(now), np.nan)
        return Judged(np.zeros(len(now), bool), nothing, np.full(len(now), np.inf))
    known = np.maximum.accumulate(window > 0, axis=1)
    enough = known.sum(axis=1) >= rule.least_weeks * _WEEK
    window[~known] = np.nan
    same_weekday = window[:, -_WEEK::-_WEEK]
    baseline = _quantile(same_weekday, 0.5)
    spread = _spread(window)
    active = _quantile(np.where(window > 0, window, np.nan), 0.5)
    high = _quantile(window, 0.9)
    baseline = np.where(baseline > 0, baseline, active)
    bound = np.maximum.reduce(
        [
            (1 + rule.rise) * baseline,
            baseline + rule.spreads * spread,
            rule.unheard * high,
            np.full(len(now), float(rule.floor_tokens)),
        ]
    )
    bound = np.where(enough, bound, np.inf)
    return Judged(now >= bound, np.where(enough, baseline, np.nan), bound)


def _spread(window: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far each subject's days lie from the median of their weekday: the robust deviation of all of them.

    Of one weekday alone there are eight days at most, and two odd ones among them would hide a surge.
    """
    apart = np.empty_like(window)
    for weekday in range(_WEEK):
        same = window[:, weekday::_WEEK]
        apart[:, weekday::_WEEK] = np.abs(same - _quantile(same, 0.5)[:, None])
    return _NORMAL * _quantile(apart, 0.5)


def _quantile(values: NDArray[np.float64], part: float) -> NDArray[np.float64]:
    """A quantile of each row without its nans, interpolated; nan for a row of nothing else.

    numpy's own goes row by row where there are nans.
    """
    count = (~np.isnan(values)).sum(axis=1)
    place = part * np.maximum(count - 1, 0)
    low = np.floor(place).astype(np.int64)
    high = np.minimum(low + 1, np.maximum(count - 1, 0))
    ordered = np.sort(values, axis=1)  # nans last
    below, above = (np.take_along_axis(ordered, each[:, None], 1)[:, 0] for each in (low, high))
    found: NDArray[np.float64] = below + (place - low) * (above - below)
    return found
