"""What every classifier has in common: parts that learn by themselves, and probabilities mixed from them.

B is the batch, T the length in tokens, P the parts, K the labels.
"""

from __future__ import annotations

from typing import Any, Iterable

import numpy as np
import tensorflow as tf  # type: ignore[import-untyped]  # ships no types
from numpy.typing import NDArray

from training.model import Noise, Tensor

Array = NDArray[Any]


class Classifier(tf.Module):  # type: ignore[misc]  # tf is untyped
    """The softmax of a weighted sum of the parts' logits, and a constant for each label.

    Weights and constants are fitted on the validation split, which also calibrates the probabilities
    (https://arxiv.org/abs/1706.04599).
    """

    def __init__(self, parts: int, labels: int) -> None:
        super().__init__()
        self.mixture = tf.Variable(tf.fill([parts], 1.0 / parts), trainable=False, name="mixture")
        self.constants = tf.Variable(tf.zeros(labels), trainable=False, name="constants")

    def logits(self, ids: Tensor, mask: Tensor, noise: Noise | None = None) -> Tensor:
        """ids, mask: int32 (B, T) → float32 (B, P, K). Only training has noise."""
        raise NotImplementedError

    def prepare(self, batches: Iterable[tuple[Array, Array, Array]]) -> None:
        """Look at all training texts once, before the first step: ids, mask (B, T) and labels (B,)."""

    def sparse_variables(self) -> list[Tensor]:
        """What plain gradient descent trains, a few rows a step; AdamW trains the rest."""
        return []

    def probabilities(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids, mask: int32 (B, T) → float32 (B, K); rows sum to 1."""
        mixed = tf.einsum("bpk,p->bk", self.logits(ids, mask), self.mixture)
        return tf.nn.softmax(mixed + self.constants)

    def answers(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """ids, mask: int32 (B, T) → the outputs of an export."""
        return {"probabilities": self.probabilities(ids, mask)}


def fit_mixture(logits: Array, labels: Array, steps: int = 20, prior: float = 1.0) -> tuple[Array, Array]:
    """The mixture and the constants that predict the labels best, by Newton's method: (P,), (K,).

    The weights are held near their mean, and the constants near 0, as by `prior` observations, lest few
    labels carry them off. logits: (N, P, K), labels: (N,).
    """
    parts, count = logits.shape[1:]
    truth = np.eye(count)[labels]  # (N, K)
    start = found = np.concatenate([np.full(parts, 1 / parts), np.zeros(count)])

    def say(weights: Array) -> Array:
        return softmax(np.einsum("npk,p->nk", logits, weights[:parts]) + weights[parts:])

    def cost(weights: Array) -> float:
        given = np.maximum(say(weights)[np.arange(len(labels)), labels], 1e-300)
        return float(-np.log(given).sum() + prior / 2 * ((weights - start) ** 2).sum())

    for _ in range(steps):
        likely = say(found)
        wrong = likely - truth
        gradient = np.concatenate([np.einsum("nk,npk->p", wrong, logits), wrong.sum(0)])
        spread = logits * likely[:, None]  # (N, P, K)
        mean = spread.sum(2)  # (N, P)
        curvature = np.zeros((parts + count, parts + count))
        curvature[:parts, :parts] = np.einsum("npk,nqk->pq", spread, logits) - mean.T @ mean
        curvature[:parts, parts:] = spread.sum(0) - mean.T @ likely
        curvature[parts:, :parts] = curvature[:parts, parts:].T
        curvature[parts:, parts:] = np.diag(likely.sum(0)) - likely.T @ likely
        step = np.linalg.solve(curvature + prior * np.eye(parts + count), gradient + prior * (found - start))
        # Far from the end a whole step leads too far: logits of a sure model hardly curve.
        while cost(found - step) > cost(found) and np.abs(step).max() > 1e-9:
            step = step / 2
        found = found - step
    return found[:parts], found[parts:]


def softmax(logits: Array) -> Array:
    """(N, K) → (N, K), rows sum to 1."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))
