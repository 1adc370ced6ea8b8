"""How good predictions are, and how good a simple baseline on the same split is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.dataset import Dataset


@dataclass(frozen=True)
class Metrics:
    """Of N texts: the shares that are right, and the four counts behind them; the second label is "positive".

    `log_loss` in nats. `calibration_error`: how far stated probabilities lie from the shares that came true,
    on average over ten bins.
    """

    accuracy: float
    standard_error: float
    f1: float
    log_loss: float
    calibration_error: float
    true_negatives: int
    false_positives: int
    false_negatives: int
    true_positives: int

    @property
    def correct(self) -> int:
        """How many texts got their label."""
        return self.true_negatives + self.true_positives

    @property
    def total(self) -> int:
        """How many texts there were."""
        return self.correct + self.false_negatives + self.false_positives

    def to_json(self) -> dict[str, float]:
        """As numbers in a JSON object, shares with six digits."""
        return {name: round(value, 6) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Baseline:
    """TF-IDF of character n-grams and logistic regression, with its range of n on the test split."""

    name: str
    test: Metrics


def measure(labels: Sequence[int] | NDArray[Any], probabilities: NDArray[np.float64]) -> Metrics:
    """Compare the probabilities of the second label (N,) with what is true (N,)."""
    truth = np.asarray(labels) == 1
    said = probabilities > 0.5
    tp, fp = int(np.sum(said & truth)), int(np.sum(said & ~truth))
    fn, tn = int(np.sum(~said & truth)), int(np.sum(~said & ~truth))
    accuracy = (tp + tn) / len(truth)
    return Metrics(
        accuracy=accuracy,
        standard_error=float(np.sqrt(accuracy * (1 - accuracy) / len(truth))),
        f1=2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 0.0,
        log_loss=log_loss(truth, probabilities),
        calibration_error=_calibration_error(truth, probabilities),
        true_negatives=tn,
        false_positives=fp,
        false_negatives=fn,
        true_positives=tp,
    )


def log_loss(labels: Sequence[int] | NDArray[Any], probabilities: NDArray[np.float64]) -> float:
    """Mean negative logarithm of the probability given to what was true, in nats."""
    truth = np.asarray(labels) == 1
    given = np.where(truth, probabilities, 1 - probabilities)
    return float(-np.mean(np.log(np.maximum(given, 1e-12))))


def baseline(dataset: Dataset) -> Baseline:
    """Train the baseline on the train split: the range of n that does better on the validation split.

    Raises nothing of its own. scikit-learn is imported here: who only measures does without it.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer  # type: ignore[import-untyped]  # ships no types
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]  # ships no types

    found = []
    for longest, rare in ((2, 1), (3, 2)):
        vectors = TfidfVectorizer(analyzer="char", ngram_range=(1, longest), sublinear_tf=True, min_df=rare)
        known = vectors.fit_transform(dataset.train.texts)
        regression = LogisticRegression(C=10, solver="liblinear").fit(known, dataset.train.labels)
        validation, test = (
            measure(split.labels, regression.predict_proba(vectors.transform(split.texts))[:, 1])
            for split in (dataset.validation, dataset.test)
        )
        name = f"TF-IDF of characters' 1-{longest}-grams, logistic regression"
        found.append((validation.accuracy, -longest, Baseline(name, test)))
    return max(found, key=lambda one: one[:2])[2]


def _calibration_error(truth: NDArray[np.bool_], probabilities: NDArray[np.float64]) -> float:
    bins = np.minimum((probabilities * 10).astype(int), 9)
    gaps = [abs(float(np.sum(probabilities[bins == b] - truth[bins == b]))) for b in range(10)]
    return sum(gaps) / len(truth)
