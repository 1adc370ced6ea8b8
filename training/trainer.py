"""Training: batches, two optimizers by hand, and the epoch kept that does best on the validation split.

The optimizers work on plain variables because Keras's own differ between TensorFlow 2.9 and today's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf  # type: ignore[import-untyped]  # ships no types
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tqdm import tqdm

from training.dataset import Split
from training.errors import TrainingError
from training.evaluation import log_loss
from training.small_model import ReviewClassifier, Tensor

Ids = NDArray[np.int32]
IDS = tf.TensorSpec([None, None], tf.int32)


@dataclass(frozen=True)
class TrainingConfig:
    """How to train; chosen on the validation split (docs/decisions)."""

    epochs: int = 4
    batch_size: int = 128
    learning_rate: float = 4e-3  # of the encoder, by AdamW
    weight_decay: float = 0.02
    warmup: float = 0.1  # of all steps
    ngram_learning_rate: float = 160.0  # of the linear half, by plain gradient descent
    seed: int = 7


@dataclass(frozen=True)
class Encoded:
    """A split as token ids: each text (T,) with [CLS] and [SEP], and its label."""

    ids: Sequence[Ids]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to: mean training loss of both halves, and the mixture on the validation split."""

    number: int
    training_loss: float
    validation_log_loss: float
    validation_accuracy: float


def encode(tokenizer: Tokenizer, split: Split, max_length_tokens: int) -> Encoded:
    """Token ids of a split. Raises: TrainingError: `text_too_long`; nothing is cut."""
    ids = [np.array(e.ids, np.int32) for e in tokenizer.encode_batch(list(split.texts))]
    longest = max(map(len, ids))
    if longest > max_length_tokens:
        raise TrainingError(
            "text_too_long", f"a text has {longest} tokens, the model takes {max_length_tokens}"
        )
    return Encoded(ids, np.array(split.labels))


def batches(
    ids: Sequence[Ids], size: int, random: np.random.RandomState | None = None
) -> Iterator[tuple[NDArray[np.int64], Ids, Ids]]:
    """Indices, ids and mask (B, T) of texts of like length, padded to the longest; shuffled if `random`."""
    lengths = np.array([len(text) for text in ids], np.float64)
    if random is not None:
        lengths *= random.uniform(1, 1.15, len(ids))  # neighbours differ from epoch to epoch
    order = np.argsort(lengths, kind="stable")
    groups = [order[start : start + size] for start in range(0, len(order), size)]
    for group in groups if random is None else random.permutation(np.array(groups, object)):
        group = np.asarray(group, np.int64)
        padded = np.zeros((len(group), max(len(ids[i]) for i in group)), np.int32)
        mask = np.zeros_like(padded)
        for row, index in enumerate(group):
            padded[row, : len(ids[index])] = ids[index]
            mask[row, : len(ids[index])] = 1
        yield group, padded, mask


def train(
    model: ReviewClassifier,
    train_split: Encoded,
    validation: Encoded,
    config: TrainingConfig,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> list[Epoch]:
    """Train the model in place, and leave it as after the epoch with the lowest validation log loss.

    A bar shows progress on a terminal; `on_epoch` is called after each epoch.
    """
    tf.random.set_seed(config.seed)
    random = np.random.RandomState(config.seed)
    model.ngram_ratio.assign(ngram_ratios(model, train_split))
    steps = config.epochs * math.ceil(len(train_split.ids) / config.batch_size)
    step = _training_step(model, config, steps)
    logits = tf.function(_logits(model), input_signature=[IDS, IDS])
    epochs: list[Epoch] = []
    best: list[Any] = []
    with tqdm(total=steps, unit="batch", disable=None, leave=False) as bar:
        for number in range(1, config.epochs + 1):
            bar.set_description(f"epoch {number}/{config.epochs}")
            losses = []
            for chosen, ids, mask in batches(train_split.ids, config.batch_size, random):
                losses.append(float(step(ids, mask, train_split.labels[chosen].astype(np.float32))))
                bar.update()
            found = np.zeros((len(validation.ids), 2))
            for chosen, ids, mask in batches(validation.ids, 128):
                found[chosen] = logits(ids, mask)
            mixture = fit_mixture(found, validation.labels)
            model.mixture.assign(mixture)
            mixed = found @ mixture[:2] + mixture[2]
            epoch = Epoch(
                number,
                training_loss=float(np.mean(losses)),
                validation_log_loss=log_loss(validation.labels, 1 / (1 + np.exp(-mixed))),
                validation_accuracy=float(np.mean((mixed > 0) == validation.labels)),
            )
            if not epochs or epoch.validation_log_loss < min(e.validation_log_loss for e in epochs):
                best = [variable.numpy() for variable in model.variables]
            epochs.append(epoch)
            on_epoch(epoch)
    for variable, value in zip(model.variables, best):
        variable.assign(value)
    return epochs


def predict(model: ReviewClassifier, ids: Sequence[Ids]) -> NDArray[np.float64]:
    """Probability of the second label for each text: (N,)."""
    call = tf.function(model.probabilities, input_signature=[IDS, IDS])
    found = np.zeros(len(ids))
    for chosen, padded, mask in batches(ids, 128):
        found[chosen] = call(padded, mask).numpy()[:, 1]
    return found


def ngram_ratios(model: ReviewClassifier, split: Encoded) -> NDArray[np.float32]:
    """For each bucket the logarithm of how much likelier a text of the second label has its n-grams."""
    buckets = tf.function(model.ngram_buckets, input_signature=[IDS, IDS])
    texts = np.ones((2, 1 << model.config.ngram_bits))  # add-one smoothing
    for chosen, ids, mask in batches(split.ids, 128):
        found, present = (tensor.numpy() for tensor in buckets(ids, mask))
        for row, label in enumerate(split.labels[chosen]):
            texts[label, np.unique(found[row][present[row] == 1])] += 1
    shares = texts / texts.sum(1, keepdims=True)
    return np.asarray(np.log(shares[1] / shares[0]), np.float32)


def fit_mixture(
    logits: NDArray[np.float64], labels: NDArray[np.int64], steps: int = 20, prior: float = 1.0
) -> NDArray[np.float64]:
    """Weights of two logits and a constant that predict the labels best: (3,), by Newton's method.

    The weights are held near their mean, as by `prior` observations, lest few labels carry them off.
    """
    inputs = np.column_stack([logits, np.ones(len(logits))])  # (N, 3)
    start = weights = np.array([0.5, 0.5, 0.0])
    for _ in range(steps):
        likely = 1 / (1 + np.exp(-np.clip(inputs @ weights, -30, 30)))
        gradient = inputs.T @ (likely - labels) + prior * (weights - start)
        curvature = (inputs * (likely * (1 - likely))[:, None]).T @ inputs + prior * np.eye(3)
        weights = weights - np.linalg.solve(curvature, gradient)
    return weights


def _logits(model: ReviewClassifier) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda ids, mask: tf.stack(
        [model.encoder_logit(ids, mask, training=False), model.ngram_logit(ids, mask)], 1
    )


def _training_step(
    model: ReviewClassifier, config: TrainingConfig, steps: int
) -> Callable[[Ids, Ids, NDArray[np.float32]], Tensor]:
    """One step of both optimizers on a batch, rates rising at first and then falling to nothing."""
    encoder, linear = model.encoder_variables(), [model.ngram_weight, model.ngram_bias]
    adamw = AdamW(encoder, config.weight_decay)

    @tf.function(input_signature=[IDS, IDS, tf.TensorSpec([None], tf.float32)])  # type: ignore[untyped-decorator]  # tf is untyped
    def step(ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        with tf.GradientTape() as tape:
            # The halves share no variable, so each learns from its own loss only: neither leans on the other.
            logits = (model.encoder_logit(ids, mask, training=True), model.ngram_logit(ids, mask))
            losses = [tf.nn.sigmoid_cross_entropy_with_logits(labels, logit) for logit in logits]
            loss = tf.reduce_mean(losses[0]) + tf.reduce_mean(losses[1])
        gradients = tape.gradient(loss, encoder + linear)
        done = adamw.steps / steps
        falling = 1.0 - done
        adamw.apply(
            gradients[:-2], config.learning_rate * tf.minimum((done + 1 / steps) / config.warmup, falling)
        )
        weight, bias = gradients[-2:]
        rate = config.ngram_learning_rate * falling
        model.ngram_weight.scatter_sub(tf.IndexedSlices(rate * weight.values, weight.indices))
        model.ngram_bias.assign_sub(rate / 100 * bias)
        return loss / 2

    return step  # type: ignore[no-any-return]  # tf is untyped


class AdamW(tf.Module):  # type: ignore[misc]  # tf is untyped
    """Adam with decoupled weight decay (https://arxiv.org/abs/1711.05101), gradients clipped to norm 1."""

    def __init__(self, variables: Sequence[Tensor], weight_decay: float) -> None:
        super().__init__()
        self.targets = variables
        self.weight_decay = weight_decay
        self.steps = tf.Variable(0.0)
        self.means = [tf.Variable(tf.zeros_like(v)) for v in variables]
        self.squares = [tf.Variable(tf.zeros_like(v)) for v in variables]

    def apply(self, gradients: Sequence[Tensor], learning_rate: Tensor) -> None:
        """Change the variables by one step. Vectors (biases and norms) do not decay."""
        self.steps.assign_add(1.0)
        dense, _ = tf.clip_by_global_norm([tf.convert_to_tensor(g) for g in gradients], 1.0)
        for variable, gradient, mean, square in zip(self.targets, dense, self.means, self.squares):
            if variable.shape.rank > 1:
                variable.assign_sub(learning_rate * self.weight_decay * variable)
            # The op itself, because it goes over a large embedding once, where its formula does ten times.
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle,
                m=mean.handle,
                v=square.handle,
                beta1_power=0.9**self.steps,
                beta2_power=0.99**self.steps,
                lr=learning_rate,
                beta1=0.9,
                beta2=0.99,
                epsilon=1e-7,
                grad=gradient,
            )
