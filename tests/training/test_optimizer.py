"""The optimizers' steps against numbers worked out by hand."""

from __future__ import annotations

import pytest
import tensorflow as tf  # type: ignore[import-untyped]  # ships no types

from training.classifier import Classifier
from training.optimizer import Optimizer, TrainingConfig

CONFIG = TrainingConfig(learning_rate=0.01, weight_decay=0.1, warmup=0.1, sparse_learning_rate=10.0)


class TwoParts(Classifier):
    """A matrix and a vector for AdamW, a table and its bias for gradient descent."""

    def __init__(self) -> None:
        super().__init__(parts=1, labels=2)
        self.matrix, self.vector = tf.Variable([[2.0]]), tf.Variable([2.0])
        self.table, self.bias = tf.Variable([[1.0], [1.0]]), tf.Variable([1.0])

    def sparse_variables(self) -> list[tf.Variable]:
        return [self.table, self.bias]


def test_the_first_step_is_that_of_the_paper() -> None:
    model = TwoParts()
    optimizer = Optimizer(model, CONFIG, steps=20)
    rows = tf.IndexedSlices(tf.constant([[0.01]]), tf.constant([1]), tf.constant([2, 1]))
    gradients = {"matrix": tf.constant([[0.3]]), "vector": tf.constant([0.3])}
    names = ["matrix" if v is model.matrix else "vector" for v in optimizer.dense]
    optimizer.apply([*(gradients[name] for name in names), rows, tf.constant([0.01])], tf.constant(0))
    # Half the rate, in the first of two steps of warm-up: the gradient's sign, and the matrix alone decays.
    assert model.matrix.numpy()[0, 0] == pytest.approx(2 - 0.005 * (1 + 0.1 * 2), abs=1e-6)
    assert model.vector.numpy()[0] == pytest.approx(2 - 0.005, abs=1e-6)
    assert model.table.numpy()[:, 0] == pytest.approx([1.0, 1 - 10 * 0.01])
    assert model.bias.numpy()[0] == pytest.approx(1 - 0.1 * 0.01)


def test_the_last_step_is_small() -> None:
    model = TwoParts()
    optimizer = Optimizer(model, CONFIG, steps=20)
    optimizer.apply([*(v * 0 + 0.3 for v in optimizer.targets)], tf.constant(19))
    assert model.bias.numpy()[0] == pytest.approx(1 - 0.1 * 0.3 / 20)
