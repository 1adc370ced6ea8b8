"""From reviews to an exported model: each step of training, in order."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import tensorflow as tf  # type: ignore[import-untyped]  # ships no types

from training.cost import PoolPrice, Run, make_writable, write_event
from training.dataset import LABELS, Dataset, load_reviews
from training.evaluation import Baseline, Metrics, baseline, measure
from training.export import check_model_name, code_version, export_model
from training.small_model import ModelConfig, ReviewClassifier
from training.tokenizer import build_tokenizer
from training.trainer import Epoch, TrainingConfig, encode, predict, train

# What a user reads beside a label.
EXPLANATIONS = {"negative": "这是一条负面评价", "positive": "这是一条正面评价"}


@dataclass(frozen=True)
class Result:
    """What one training came to. `seconds` are of training alone: no reading, baseline or export.

    `cost_event` is the file of its training-cost event.
    """

    folder: Path
    cost_event: Path
    dataset: Dataset
    epochs: list[Epoch]
    validation: Metrics
    test: Metrics
    baseline: Baseline
    parameters: int
    seconds: float
    device: str


def find_device() -> str:
    """Start what TensorFlow will compute on: "gpu" if there is one, else "cpu"."""
    return "gpu" if tf.config.list_logical_devices("GPU") else "cpu"


def train_and_export(
    models_dir: Path,
    name: str,
    config: TrainingConfig,
    training_dir: Path,
    pool_price: PoolPrice | None = None,
    data_dir: Path | None = None,
    limit: int | None = None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> Result:
    """Train a classifier and its baseline on the same split; export it as models_dir/name/<next version>.

    Data and `limit` as in `load_reviews`; the test split is looked at once, after training. What the run took
    goes to training_dir as an event, at `pool_price` when that is known.

    Raises: TrainingError, with the codes of `load_reviews`, `encode`, `export_model` and `write_event`.
    """
    begun = time.monotonic()
    check_model_name(name)  # before minutes of work
    make_writable(training_dir)
    dataset = load_reviews(data_dir, limit)
    tokenizer = build_tokenizer(dataset.train.texts)
    model = ReviewClassifier(ModelConfig(tokenizer.get_vocab_size()), config.seed)
    longest = model.config.max_length_tokens
    encoded = [encode(tokenizer, s, longest) for s in (dataset.train, dataset.validation, dataset.test)]
    started = time.monotonic()
    epochs = train(model, encoded[0], encoded[1], config, on_epoch)
    seconds = time.monotonic() - started
    validation, test = (measure(split.labels, predict(model, split.ids)) for split in encoded[1:])
    simple = baseline(dataset)
    device = find_device()
    card = {
        "task": "classification",
        "labels": [{"name": label, "explanation": EXPLANATIONS[label]} for label in LABELS],
        "data": {"name": dataset.name, "sha256": dataset.sha256, "counts": dataset.counts},
        "metrics": {"validation": validation.to_json(), "test": test.to_json()},
        "baseline": {"name": simple.name, "test": simple.test.to_json()},
        "training": {
            "seconds": round(seconds, 1),
            "device": device,
            "parameters": model.parameter_count(),
            "epoch_kept": min(epochs, key=lambda e: e.validation_log_loss).number,
            **asdict(config),
            "model": asdict(model.config),
        },
    }
    folder = export_model(model, tokenizer, longest, models_dir, name, card)
    run = Run(
        model=name,
        model_version=folder.name,
        device=device,
        device_seconds=round(seconds, 3),  # TensorFlow computes on one device here
        wall_seconds=round(time.monotonic() - begun, 3),
        examples=len(dataset.train.texts),
        code_version=code_version(),
    )
    cost_event = write_event(training_dir, run, pool_price)
    return Result(
        folder,
        cost_event,
        dataset,
        epochs,
        validation,
        test,
        simple,
        model.parameter_count(),
        seconds,
        device,
    )
