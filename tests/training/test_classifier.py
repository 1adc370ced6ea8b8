"""The mixture of a classifier's parts, fitted on the validation split."""

from __future__ import annotations

import numpy as np

from training.classifier import fit_mixture, softmax


def test_the_mixture_trusts_the_part_that_is_right_and_recovers_a_known_one() -> None:
    random = np.random.RandomState(0)
    logits = random.normal(size=(20_000, 2, 3)) * 2
    truth = softmax(1.5 * logits[:, 0] + 0.5 * logits[:, 1] + [0.3, 0.0, -0.3])
    labels = (truth.cumsum(1) < random.uniform(size=(20_000, 1))).sum(1)
    mixture, constants = fit_mixture(logits, labels)
    np.testing.assert_allclose(mixture, [1.5, 0.5], atol=0.08)
    np.testing.assert_allclose(constants, [0.3, 0.0, -0.3], atol=0.08)


def test_one_part_that_is_too_sure_is_calmed() -> None:
    random = np.random.RandomState(0)
    logits = random.normal(size=(5_000, 1, 2)) * 4
    labels = (softmax(logits[:, 0] / 4)[:, 1] > random.uniform(size=5_000)).astype(int)
    mixture, _ = fit_mixture(logits, labels)
    np.testing.assert_allclose(mixture, [0.25], atol=0.03)


def test_the_mixture_stays_finite_when_few_texts_are_told_apart_perfectly() -> None:
    one = np.array([5.0, -5.0, 4.0, -4.0])
    logits = np.stack([np.column_stack([np.zeros(4), one])] * 2, 1)
    mixture, _ = fit_mixture(logits, np.array([1, 0, 1, 0]))
    assert (mixture > 0.3).all()
    assert (mixture < 1).all()
