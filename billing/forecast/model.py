"""What a history of daily tokens goes on to, and how wrong such a forecast was on weeks held back.

Two methods are held against each other: exponential smoothing with a damped trend and a weekly season (ETS of
statsmodels), and the same weekday of the last week again. What is shown is the better one. Pure; statistics
are floats, and nothing here is ever billed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

WEEK = 7
_HELD_BACK_DAYS, _FOLDS = 28, 3
_LEAST_DAYS = {"model": 8 * WEEK, "naive": 2 * WEEK}
_LONG_PAUSE = 8 * WEEK  # without usage: what was before it says nothing of what comes
_PATHS = 300
_LOW, _HIGH = 0.1, 0.9  # eight of ten outcomes lie between
_SPIKE = 2.0  # times what is usual on the weekdays around it: a surge, which is no season

Method = Literal["model", "naive", "none"]
Reason = Literal["better", "not_better", "short", "unused", "too_short"]
Days = NDArray[np.float64]
Paths = NDArray[np.float64]  # [paths, days]


@dataclass(frozen=True)
class Forecast:
    """Tokens of each day ahead, and possible courses of them: [paths, days].

    `error` and `naive_error` are what each method was wrong by on weeks held back, in parts of what was
    used there; None where the history is too short to hold weeks back.
    """

    method: Method
    reason: Reason
    expected: Days
    paths: Paths
    error: float | None
    naive_error: float | None

    def between(self, first: int, last: int) -> tuple[int, int, int]:
        """Tokens from a day ahead to another, both included: expected, and the ends of the interval."""
        total = round(float(self.expected[first : last + 1].sum()))
        if not len(self.paths):
            return total, total, total
        sums = self.paths[:, first : last + 1].sum(axis=1)
        low, high = (round(float(np.quantile(sums, part))) for part in (_LOW, _HIGH))
        return total, min(low, total), max(high, total)

    def band(self) -> tuple[Days, Days]:
        """The ends of the interval of each day."""
        if not len(self.paths):
            return self.expected, self.expected
        low, high = np.quantile(self.paths, (_LOW, _HIGH), axis=0)
        return np.minimum(low, self.expected), np.maximum(high, self.expected)


def forecast(tokens: NDArray[np.int64], missing: NDArray[np.bool_], ahead: int) -> Forecast:
    """Forecast so many days after a history.

    Args:
        tokens: by day, the last one being over.
        missing: days that nobody has events of: an outage of the metering, not a day without usage.
    Surges are taken out first: for both methods, and of the weeks that are held back. What was used before
    eight weeks without any usage, such as one event with a wrong clock, is not learned from.
    """
    begun = _begun(tokens)
    history = _without_spikes(_filled(tokens[begun:].astype(np.float64), missing[begun:]))
    if not (tokens[-4 * WEEK :] > 0).any():
        nothing = np.zeros(ahead)
        return Forecast("none", "unused", nothing, np.zeros((0, ahead)), None, None)
    if len(history) < _LEAST_DAYS["naive"]:
        return Forecast("none", "too_short", np.zeros(ahead), np.zeros((0, ahead)), None, None)
    error, naive_error = _errors(history)
    if error is None or naive_error is None:
        return Forecast("naive", "short", *_naive(history, ahead), error, naive_error)
    if error >= naive_error:
        return Forecast("naive", "not_better", *_naive(history, ahead), error, naive_error)
    return Forecast("model", "better", *_model(history, ahead), error, naive_error)


def days_missing(tokens: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Days without a token, where at least half of the same weekdays around them have some.

    The weekends of a house that rests on them are days without usage, and so is what was before the first.
    """
    missing = np.zeros(len(tokens), bool)
    for day in range(_begun(tokens), len(tokens)):
        if not tokens[day]:
            near = [d for d in range(day % WEEK, len(tokens), WEEK) if d != day and abs(d - day) <= 4 * WEEK]
            missing[day] = bool(near) and 2 * np.count_nonzero(tokens[near]) >= len(near)
    return missing


def _begun(tokens: NDArray[np.int64]) -> int:
    """The first day with usage after the last long time without."""
    used = np.flatnonzero(tokens > 0)
    if not len(used):
        return len(tokens)
    breaks = np.flatnonzero(np.diff(used) > _LONG_PAUSE)
    return int(used[breaks[-1] + 1] if len(breaks) else used[0])


def _errors(history: Days) -> tuple[float | None, float | None]:
    """What both methods were wrong by on up to three times four weeks that were held back."""
    wrong: dict[Callable[[Days, int, int], tuple[Days, Paths]], float] = {_model: 0.0, _naive: 0.0}
    used = 0.0
    for fold in range(_FOLDS):
        end = len(history) - fold * _HELD_BACK_DAYS
        known, held_back = history[: end - _HELD_BACK_DAYS], history[end - _HELD_BACK_DAYS : end]
        if len(known) < _LEAST_DAYS["model"]:
            break
        used += float(held_back.sum())
        for method in wrong:
            wrong[method] += float(np.abs(method(known, _HELD_BACK_DAYS, 0)[0] - held_back).sum())
    if not used:
        return None, None
    return wrong[_model] / used, wrong[_naive] / used


def _model(history: Days, ahead: int, paths: int = _PATHS) -> tuple[Days, Paths]:
    """ETS with a damped trend and a weekly season, of logarithms: it grows in parts, and never below 0."""
    from statsmodels.tsa.exponential_smoothing.ets import ETSModel  # type: ignore[import-untyped]

    logs = np.log1p(history)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a fit that stopped early, which the held-back weeks judge
        model = ETSModel(
            logs,
            error="add",
            trend="add",
            damped_trend=True,
            seasonal="add",
            seasonal_periods=WEEK,
            initialization_method="heuristic",
        )
        fitted = model.fit(disp=False)
        expected = np.asarray(fitted.forecast(ahead))
        # Errors as they were, since they are not normal; the first ones are those of the start's guesses.
        residuals = np.asarray(fitted.resid)[2 * WEEK :]
        errors = np.random.default_rng(7).choice(residuals - residuals.mean(), (ahead, paths))
        drawn = errors
        if paths:
            drawn = fitted.simulate(ahead, anchor="end", repetitions=paths, random_errors=errors)
    ceiling = logs.max() + np.log(10.0)  # a path that explodes says nothing
    courses = np.expm1(np.clip(np.asarray(drawn).reshape(ahead, paths).T, 0, ceiling))
    return np.expm1(np.clip(expected, 0, ceiling)), courses


def _naive(history: Days, ahead: int, paths: int = _PATHS) -> tuple[Days, Paths]:
    """The last week again and again; paths wander from week to week as the history did."""
    last = history[-WEEK:]
    expected = np.resize(last, ahead)
    logs = np.log1p(history[-9 * WEEK :])
    steps = logs[WEEK:] - logs[:-WEEK] if len(logs) > WEEK else np.zeros(1)
    chance = np.random.default_rng(7)
    weeks = -(-ahead // WEEK)
    wander = chance.choice(steps, (paths, weeks)).cumsum(axis=1).repeat(WEEK, axis=1)[:, :ahead]
    return expected, np.expm1(np.log1p(expected) + np.clip(wander, -5, 2.5))


def _filled(history: Days, missing: NDArray[np.bool_]) -> Days:
    """The history with missing days as the same weekdays around them."""
    found = history.copy()
    for day in np.flatnonzero(missing):
        same = [d for d in range(day % WEEK, len(history), WEEK) if not missing[d]]
        near = [d for d in same if abs(d - day) <= 4 * WEEK] or same
        found[day] = float(np.median(history[near])) if near else 0.0
    return found


def _without_spikes(history: Days) -> Days:
    """The history with surges as what is usual on the weekdays around them."""
    found = history.copy()
    for day in range(len(history)):
        same = range(day % WEEK, len(history), WEEK)
        near = [d for d in same if d != day and abs(d - day) <= 4 * WEEK]
        usual = float(np.median(history[near])) if near else 0.0
        if usual and history[day] > _SPIKE * usual:
            found[day] = usual
    return found
