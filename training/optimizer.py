"""Two optimizers on plain variables: Keras's own differ between TensorFlow 2.9 and today's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import tensorflow as tf  # type: ignore[import-untyped]  # ships no types

from training.classifier import Classifier
from training.model import Tensor


@dataclass(frozen=True)
class TrainingConfig:
    """How to train. The defaults are the small model's, chosen on the validation split (docs/decisions)."""

    epochs: int = 3
    batch_size: int = 128
    learning_rate: float = 4e-3  # of AdamW
    weight_decay: float = 0.02
    beta2: float = 0.99
    warmup: float = 0.1  # of all steps
    sparse_learning_rate: float = 160.0  # of the n-grams, by plain gradient descent
    patience: int = 2  # epochs without a better one, after which training ends
    seed: int = 7


# For a pretrained BERT: the paper's ranges.
FINE_TUNING = TrainingConfig(
    batch_size=32, learning_rate=5e-5, weight_decay=0.01, beta2=0.999
)  # fmt: skip


class Optimizer:
    """AdamW (https://arxiv.org/abs/1711.05101), gradients clipped to norm 1; plain descent for sparse parts.

    Rates rise over the warm-up and then fall to nothing. In a replica of a strategy it changes that replica's
    variables: all replicas get the same gradients, and so stay alike.
    """

    def __init__(self, model: Classifier, config: TrainingConfig, steps: int) -> None:
        sparse = {variable.ref() for variable in model.sparse_variables()}
        self.config, self.steps = config, steps
        self.sparse = model.sparse_variables()
        self.dense = [v for v in model.trainable_variables if v.ref() not in sparse]
        self.means = [tf.Variable(tf.zeros(v.shape), trainable=False) for v in self.dense]
        self.squares = [tf.Variable(tf.zeros(v.shape), trainable=False) for v in self.dense]

    @property
    def variables(self) -> list[Tensor]:
        """What must be kept to go on later."""
        return [*self.means, *self.squares]

    @property
    def targets(self) -> list[Tensor]:
        """What it trains, in the order of the gradients that it takes."""
        return [*self.dense, *self.sparse]

    def apply(self, gradients: Sequence[Tensor], step: Tensor) -> None:
        """Change the variables by one step; `step` counts from 0."""
        config = self.config
        done = tf.cast(step, tf.float32)
        falling = 1.0 - done / self.steps
        rate = config.learning_rate * tf.minimum((done + 1.0) / (self.steps * config.warmup), falling)
        dense, _ = tf.clip_by_global_norm(gradients[: len(self.dense)], 1.0)
        for variable, gradient, mean, square in zip(self.dense, dense, self.means, self.squares):
            if variable.shape.rank > 1:  # vectors (biases and norms) do not decay
                decay = (
                    rate
                    * config.weight_decay
                    * tf.raw_ops.ReadVariableOp(resource=variable.handle, dtype=tf.float32)
                )
                tf.raw_ops.AssignSubVariableOp(resource=variable.handle, value=decay)
            # The op itself, because it goes over a large embedding once, where its formula does ten times.
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle,
                m=mean.handle,
                v=square.handle,
                beta1_power=0.9 ** (done + 1.0),
                beta2_power=config.beta2 ** (done + 1.0),
                lr=rate,
                beta1=0.9,
                beta2=config.beta2,
                epsilon=1e-7,
                grad=gradient,
            )
        rate = config.sparse_learning_rate * falling
        for variable, gradient in zip(self.sparse, gradients[len(self.dense) :]):
            if isinstance(gradient, tf.IndexedSlices):
                tf.raw_ops.ResourceScatterSub(
                    resource=variable.handle, indices=gradient.indices, updates=rate * gradient.values
                )
            else:
                # Biases, at a hundredth of the rate: each text has one, and a single n-gram few texts.
                share = 1.0 if variable.shape.rank > 1 else 0.01
                tf.raw_ops.AssignSubVariableOp(resource=variable.handle, value=share * rate * gradient)
