"""Metrics against numbers worked out by hand, and the baseline on real reviews."""

from __future__ import annotations

import math

import numpy as np
import pytest

from training.dataset import load_texts
from training.evaluation import baseline, log_loss, measure


def of_two(*second: float) -> np.ndarray:
    """Probabilities of two labels, from those of the second."""
    return np.column_stack([1 - np.array(second), second])


def test_the_counts_and_shares_of_a_small_example() -> None:
    found = measure([1, 1, 1, 0, 0], of_two(0.9, 0.8, 0.3, 0.6, 0.1))
    assert found.confusion == ((1, 1), (1, 2))
    assert (found.correct, found.total, found.accuracy) == (3, 5, 0.6)
    assert found.f1 == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found.standard_error == pytest.approx(math.sqrt(0.6 * 0.4 / 5))


def test_three_labels_are_counted_by_what_was_said_of_each() -> None:
    said = np.eye(3)[[0, 1, 1, 2, 0]] * 0.8 + 0.05
    found = measure([0, 1, 2, 2, 1], said)
    assert found.confusion == ((1, 0, 0), (1, 1, 0), (0, 1, 1))
    assert found.f1 == pytest.approx((2 / 3 + 1 / 2 + 2 / 3) / 3)


@pytest.mark.parametrize(
    ("labels", "probabilities", "loss"),
    [([1, 0], [0.5, 0.5], math.log(2)), ([1, 0], [0.8, 0.4], -(math.log(0.8) + math.log(0.6)) / 2)],
)
def test_log_loss(labels: list[int], probabilities: list[float], loss: float) -> None:
    assert log_loss(labels, of_two(*probabilities)) == pytest.approx(loss)


def test_a_certain_mistake_costs_much_but_not_infinitely() -> None:
    assert 20 < log_loss([0], of_two(1.0)) < 30


def test_stated_probabilities_that_come_true_as_often_are_calibrated() -> None:
    labels = [1, 1, 1, 0, 0, 0, 0, 1]
    assert measure(labels, of_two(*[0.75] * 4, *[0.25] * 4)).calibration_error == pytest.approx(0)
    assert measure(labels, of_two(*[0.95] * 4, *[0.25] * 4)).calibration_error == pytest.approx(0.1)


def test_a_label_that_is_never_right_has_f1_0() -> None:
    assert measure([0, 0], of_two(0.1, 0.2)).f1 == 0.5


def test_the_baseline_learns_something_from_few_reviews_and_is_the_same_each_time() -> None:
    reviews = load_texts(limit=2000)
    first, second = baseline(reviews), baseline(reviews)
    assert first == second
    assert first.test.total == reviews.counts["test"]
    assert first.test.accuracy > 0.7
