"""Training: steps under a strategy, an epoch's end on the validation split, and the best epoch kept.

A run can be killed after any step and goes on from its checkpoint: what a step does follows from the seed,
the step's number and the variables alone.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Callable

import numpy as np
import tensorflow as tf  # type: ignore[import-untyped]  # ships no types
from numpy.typing import NDArray
from tqdm import tqdm

from training.batches import Encoded, dataset, in_order, plan
from training.checkpoints import Checkpoints
from training.classifier import Classifier, fit_mixture, softmax
from training.devices import Devices
from training.errors import TrainingError
from training.evaluation import log_loss
from training.model import Noise, Tensor
from training.optimizer import Optimizer, TrainingConfig

Array = NDArray[Any]
IDS = tf.TensorSpec([None, None], tf.int32)
GOOD_STEPS = 1000  # in half precision: after so many the loss is scaled up twofold


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to: mean training loss of a part, and the mixture on the validation split."""

    number: int
    training_loss: float
    validation_log_loss: float
    validation_accuracy: float


@dataclass
class Progress:
    """How far a run is. `seconds`: of training, up to the checkpoint, in every process that worked on it."""

    epoch: int = 0
    batch: int = 0  # done in this epoch
    losses: list[float] = field(default_factory=list)  # of these batches
    epochs: list[Epoch] = field(default_factory=list)
    scale: float = 1.0  # of the loss
    good_steps: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Trained:
    """The weights after the best epoch, in the order of `Classifier.variables`.

    `seconds`: of training in all; `seconds_before`: of these, in the processes that this one goes on from.
    """

    weights: list[Array]
    epochs: list[Epoch]
    seconds: float
    seconds_before: float


def train(
    build: Callable[[], Classifier],
    train_split: Encoded,
    validation: Encoded,
    config: TrainingConfig,
    devices: Devices,
    checkpoints: Checkpoints | None = None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> Trained:
    """Train what `build` makes, going on from a checkpoint if there is one.

    Ends early when the validation log loss has not fallen for `config.patience` epochs. A bar shows progress
    on a terminal; `on_epoch` is called after each epoch that this process trained.

    Raises: TrainingError: `batch_not_divisible` (by the devices), and those of `Checkpoints`.
    """
    if config.batch_size % devices.count:
        split = f"{config.batch_size} texts do not split among {devices.count} devices"
        raise TrainingError("batch_not_divisible", split)
    lengths = [len(text) for text in train_split.ids]
    batches = math.ceil(len(lengths) / config.batch_size)
    with devices.strategy.scope():
        model = build()
        optimizer = Optimizer(model, config, steps=config.epochs * batches)
    kept = {f"model{n}": v for n, v in enumerate(model.variables)}
    kept.update({f"optimizer{n}": v for n, v in enumerate(optimizer.variables)})
    progress = Progress(scale=2.0**15 if devices.compute == "float16" else 1.0)
    best: list[Array] = []
    found = checkpoints.read() if checkpoints else None
    if found is None:
        model.prepare((i, m, train_split.labels[chosen]) for chosen, i, m in in_order(train_split))
    else:
        progress, best = _restore(found, kept)
    step = _step(model, optimizer, config, devices)
    logits = tf.function(model.logits, input_signature=[IDS, IDS], autograph=False)

    def save(seconds: float) -> None:
        if checkpoints:
            arrays = {name: variable.numpy() for name, variable in kept.items()}
            arrays.update({f"best{n}": value for n, value in enumerate(best)})
            checkpoints.write({**asdict(progress), "seconds": seconds}, arrays)

    before = progress.seconds
    begun = time.monotonic() - before
    with tqdm(total=config.epochs * batches, unit="batch", disable=None, leave=False) as bar:
        bar.update(progress.epoch * batches + progress.batch)
        while progress.epoch < config.epochs and not _stale(progress.epochs, config.patience):
            bar.set_description(f"epoch {progress.epoch + 1}/{config.epochs}")
            groups = plan(lengths, config.batch_size, np.random.RandomState([config.seed, progress.epoch]))
            feed = iter(_distributed(train_split, groups[progress.batch :], config.batch_size, devices))
            for number in range(progress.batch, batches):
                loss, finite = step(
                    feed, tf.constant(progress.epoch * batches + number), tf.constant(progress.scale)
                )
                progress.batch += 1
                progress.losses.append(float(loss))
                _adjust(progress, bool(finite), devices)
                bar.update()
                if checkpoints and checkpoints.due():
                    save(time.monotonic() - begun)
            epoch = _validate(model, logits, validation, progress)
            if epoch.validation_log_loss < min([np.inf, *(e.validation_log_loss for e in progress.epochs)]):
                best = [variable.numpy() for variable in model.variables]
            progress.epochs.append(epoch)
            progress.epoch, progress.batch, progress.losses = progress.epoch + 1, 0, []
            on_epoch(epoch)
            save(time.monotonic() - begun)
    return Trained(best, progress.epochs, time.monotonic() - begun, before)


def predict(model: Classifier, split: Encoded) -> Array:
    """Probabilities of the labels for each text: float64 (N, K)."""
    call = tf.function(model.probabilities, input_signature=[IDS, IDS], autograph=False)
    return _each(call, split, tuple(model.constants.shape))


def _each(call: Any, split: Encoded, shape: tuple[int, ...]) -> Array:
    """What `call` says of each text: (N, *shape)."""
    found = np.zeros((len(split.ids), *shape))
    for chosen, ids, mask in in_order(split):
        found[chosen] = call(ids, mask).numpy()[: len(chosen)]
    return found


def _validate(model: Classifier, logits: Any, validation: Encoded, progress: Progress) -> Epoch:
    """Fit the mixture, and see what the model is worth with it."""
    shape = (*model.mixture.shape, *model.constants.shape)
    found = _each(logits, validation, shape)
    mixture, constants = fit_mixture(found, validation.labels)
    model.mixture.assign(mixture.astype(np.float32))
    model.constants.assign(constants.astype(np.float32))
    mixed = softmax(np.einsum("npk,p->nk", found, mixture) + constants)
    return Epoch(
        progress.epoch + 1,
        training_loss=float(np.mean(progress.losses)),
        validation_log_loss=log_loss(validation.labels, mixed),
        validation_accuracy=float(np.mean(mixed.argmax(1) == validation.labels)),
    )


def _stale(epochs: list[Epoch], patience: int) -> bool:
    losses = [epoch.validation_log_loss for epoch in epochs]
    return len(losses) > patience and min(losses[-patience:]) >= min(losses[:-patience])


def _adjust(progress: Progress, finite: bool, devices: Devices) -> None:
    """Scale the loss down when half precision overflowed, and up again after many good steps."""
    if devices.compute != "float16":
        return
    progress.good_steps = progress.good_steps + 1 if finite else 0
    if not finite:
        progress.scale = max(progress.scale / 2, 1.0)
    elif progress.good_steps % GOOD_STEPS == 0:
        progress.scale *= 2


def _distributed(split: Encoded, groups: list[Array], size: int, devices: Devices) -> Any:
    """The batches of these groups for the replicas of this process."""

    def mine(context: Any) -> Any:
        local = devices.count // context.num_input_pipelines
        first = context.input_pipeline_id * local
        return dataset(split, groups, size, devices.count, slice(first, first + local))

    return devices.strategy.distribute_datasets_from_function(mine)


def _step(model: Classifier, optimizer: Optimizer, config: TrainingConfig, devices: Devices) -> Any:
    """One step of all replicas, from the batches' iterator, the step's number and the loss's scale.

    Gives the mean loss of a part, and whether all gradients were finite. If not, nothing is changed.
    """
    half = devices.compute == "float16"
    # A few rows of a large table stay as they are, unless they are summed or looked at as a whole.
    whole = half or devices.count > 1
    seed = int(np.array(config.seed, np.uint32).astype(np.int32))

    @tf.function(jit_compile=devices.xla or None, autograph=False)  # type: ignore[untyped-decorator]  # tf is untyped
    def differentiate(batch: Any, at: Tensor, scale: Tensor) -> Any:
        ids, mask, labels, weights = batch
        with tf.GradientTape() as tape:
            found = model.logits(ids, mask, Noise(tf.stack([seed, at])))  # (B, P, K)
            truth = tf.one_hot(labels, tf.shape(found)[2])[:, None]
            each = tf.nn.softmax_cross_entropy_with_logits(tf.broadcast_to(truth, tf.shape(found)), found)
            loss = tf.reduce_sum(each * weights[:, None])
            scaled = loss * scale if half else loss
        gradients = tape.gradient(scaled, optimizer.targets)
        return loss / found.shape[1], [
            tf.convert_to_tensor(g) if whole or n < len(optimizer.dense) else g
            for n, g in enumerate(gradients)
        ]

    def replica(batch: Any, number: Tensor, scale: Tensor) -> Any:
        context = tf.distribute.get_replica_context()
        at = number * devices.count + context.replica_id_in_sync_group
        loss, gradients = differentiate(batch, at, scale)
        if devices.count > 1:
            gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        if not half:
            optimizer.apply(gradients, number)
            return loss, tf.constant(1.0)
        gradients = [g / scale for g in gradients]
        finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(g)) for g in gradients])

        def change() -> Tensor:
            optimizer.apply(gradients, number)
            return 1.0

        return loss, tf.cond(finite, change, lambda: 0.0)

    @tf.function(autograph=False)  # type: ignore[untyped-decorator]  # tf is untyped
    def step(feed: Any, number: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        losses, finite = devices.strategy.run(replica, args=(next(feed), number, scale))
        add = tf.distribute.ReduceOp.SUM
        agree = devices.strategy.reduce(add, finite, axis=None)
        return devices.strategy.reduce(add, losses, axis=None), agree >= float(devices.count)

    return step


def _restore(found: Any, kept: dict[str, Tensor]) -> tuple[Progress, list[Array]]:
    state, arrays = found
    for name, variable in kept.items():
        variable.assign(arrays[name])
    epochs = [Epoch(**epoch) for epoch in state.pop("epochs")]
    best = [arrays[f"best{n}"] for n in range(sum(name.startswith("best") for name in arrays))]
    return Progress(epochs=epochs, **state), best
