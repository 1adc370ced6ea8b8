"""How good predictions are, and how good a simple baseline on the same split is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.dataset import Dataset

Array = NDArray[Any]


@dataclass(frozen=True)
class Metrics:
    """Of N texts: the share that is right, and the counts behind it: confusion[true label][said label].

    `f1`: the mean of the labels' F1. `log_loss` in nats. `calibration_error`: how far the stated probability
    of what was said lies from the share that came true, on average over ten bins.
    """

    accuracy: float
    standard_error: float
    f1: float
    log_loss: float
    calibration_error: float
    confusion: tuple[tuple[int, ...], ...]

    @property
    def correct(self) -> int:
        """How many texts got their label."""
        return sum(row[label] for label, row in enumerate(self.confusion))

    @property
    def total(self) -> int:
        """How many texts there were."""
        return sum(map(sum, self.confusion))

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, shares with six digits."""
        told = asdict(self)
        return {name: round(value, 6) if isinstance(value, float) else value for name, value in told.items()}


@dataclass(frozen=True)
class Baseline:
    """TF-IDF of character n-grams and logistic regression, with its range of n on the test split."""

    name: str
    test: Metrics


def measure(labels: Sequence[int] | Array, probabilities: Array) -> Metrics:
    """Compare the probabilities of the labels (N, K) with what is true (N,)."""
    truth, said = np.asarray(labels), probabilities.argmax(1)
    count = probabilities.shape[1]
    confusion = np.zeros((count, count), int)
    np.add.at(confusion, (truth, said), 1)
    right = np.diag(confusion)
    either = confusion.sum(0) + confusion.sum(1)  # twice the hits, and the misses of both kinds
    accuracy = float(right.sum() / len(truth))
    return Metrics(
        accuracy=accuracy,
        standard_error=float(np.sqrt(accuracy * (1 - accuracy) / len(truth))),
        f1=float(np.mean(2 * right / np.maximum(either, 1))),
        log_loss=log_loss(truth, probabilities),
        calibration_error=_calibration_error(said == truth, probabilities.max(1)),
        confusion=tuple(tuple(map(int, row)) for row in confusion),
    )


def log_loss(labels: Sequence[int] | Array, probabilities: Array) -> float:
    """Mean negative logarithm of the probability (N, K) given to what was true (N,), in nats."""
    given = probabilities[np.arange(len(probabilities)), np.asarray(labels)]
    return float(-np.mean(np.log(np.maximum(given, 1e-12))))


def baseline(dataset: Dataset) -> Baseline:
    """Train the baseline on the train split: the range of n that does better on the validation split.

    Raises nothing of its own. scikit-learn is imported here: who only measures does without it.
    """
    from sklearn.feature_extraction.text import (  # type: ignore[import-untyped]  # ships no types
        CountVectorizer,
        TfidfTransformer,
    )
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]  # ships no types

    # The n-grams are counted once for both, since that takes as long as a regression.
    counting = CountVectorizer(analyzer="char", ngram_range=(1, 3))
    train = counting.fit_transform(dataset.train.texts)  # (N, n-grams)
    others = [counting.transform(split.texts) for split in (dataset.validation, dataset.test)]
    sizes = np.array([len(gram) for gram in counting.get_feature_names_out()])
    texts = train.getnnz(0)  # that have it
    solver = "liblinear" if len(dataset.labels) == 2 else "lbfgs"  # the faster one takes two labels only
    found = []
    for longest, rare in ((2, 1), (3, 2)):
        kept = np.flatnonzero((sizes <= longest) & (texts >= rare))
        weights = TfidfTransformer(sublinear_tf=True).fit(train[:, kept])
        regression = LogisticRegression(C=10, solver=solver, max_iter=1000)
        regression.fit(weights.transform(train[:, kept]), dataset.train.labels)
        validation, test = (
            measure(split.labels, regression.predict_proba(weights.transform(counts[:, kept])))
            for split, counts in zip((dataset.validation, dataset.test), others)
        )
        name = f"TF-IDF of characters' 1-{longest}-grams, logistic regression"
        found.append((validation.accuracy, -longest, Baseline(name, test)))
    return max(found, key=lambda one: one[:2])[2]


def _calibration_error(right: Array, stated: Array) -> float:
    bins = np.minimum((stated * 10).astype(int), 9)
    gaps = [abs(float(np.sum(stated[bins == b] - right[bins == b]))) for b in range(10)]
    return sum(gaps) / len(right)
