"""A training of seconds, for the tests of what trains: as a module, and as a program that can be killed.

    python -m tests.training.small_training FOLDER [STEP TO BE KILLED AFTER]

trains with a checkpoint after every step, and writes the weights to FOLDER/weights.npz. Under TF_CONFIG it is
one of several workers, which train as `TOGETHER` says.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from training.batches import Encoded
from training.bert_classifier import BertClassifier
from training.checkpoints import Checkpoints
from training.classifier import Classifier
from training.devices import Devices, find_devices
from training.model import BertConfig
from training.optimizer import TrainingConfig
from training.small_model import SmallClassifier, SmallConfig
from training.trainer import Trained, train

CONFIG = TrainingConfig(epochs=3, batch_size=16, learning_rate=2e-3)
TOGETHER: dict[str, Any] = {
    "config": replace(CONFIG, epochs=2),
    "longest": 15,
}  # each machine traces each length
LABELS = 3


def texts(count: int, seed: int, longest: int = 30) -> Encoded:
    """Random tokens, of which one says the label."""
    random = np.random.RandomState(seed)
    labels = random.randint(0, LABELS, count)
    ids = [random.randint(10, 60, random.randint(3, longest)).astype(np.int32) for _ in range(count)]
    for text, label in zip(ids, labels, strict=True):
        text[random.randint(len(text))] = 5 + label
    return Encoded(ids, labels.astype(np.int64))


def small() -> Classifier:
    """The small model, smaller."""
    return SmallClassifier(SmallConfig(60, LABELS, width=16, heads=2, bigram_bits=8, ngram_bits=10), seed=1)


def bert(compute: str = "float32") -> Classifier:
    """A BERT, as small."""
    config = BertConfig(60, max_length_tokens=64, width=16, heads=2, layers=1, feed_forward_width=32)
    return BertClassifier(config, LABELS, seed=1, compute=compute)


def run(build: Any, devices: Devices, checkpoints: Checkpoints | None = None, **options: Any) -> Trained:
    """Train on 200 texts."""
    config, longest = options.pop("config", CONFIG), options.pop("longest", 30)
    splits = texts(200, 1, longest), texts(60, 2, longest)
    return train(build, *splits, config, devices, checkpoints, **options)


class Killed(Checkpoints):
    """Writes after every step, and ends the process after some."""

    left = 0

    def due(self) -> bool:
        return True

    def write(self, state: dict[str, Any], arrays: dict[str, Any]) -> None:
        super().write(state, arrays)
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def main(folder: Path, kill_after: int) -> None:
    devices = find_devices()
    checkpoints = Killed(folder / "run", chief=devices.chief)
    checkpoints.left = kill_after
    trained = run(small, devices, checkpoints, **({} if devices.count == 1 else TOGETHER))
    if devices.chief:
        weights = {f"w{n}": value for n, value in enumerate(trained.weights)}
        epochs = np.array([e.validation_log_loss for e in trained.epochs])
        np.savez(folder / "weights.npz", epochs=epochs, **weights)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else -1)
