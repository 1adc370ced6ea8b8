"""From labelled texts to a published model: each step of training, in order."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable, Sequence

import tensorflow as tf  # type: ignore[import-untyped]  # ships no types

from training.batches import Encoded, encode_all
from training.bert_classifier import BertClassifier
from training.checkpoints import Checkpoints
from training.classifier import Classifier
from training.cost import PoolPrice, Run, make_writable, write_event
from training.dataset import Dataset, load_texts
from training.devices import Devices
from training.evaluation import Baseline, Metrics, baseline, measure
from training.export import check_model_name, code_version, export_model, write_refused
from training.gate import Verdict, in_service, judge
from training.model import parameter_count
from training.optimizer import TrainingConfig
from training.pictures import confusion_matrix, learning_curves
from training.pretrained import Checkpoint, load_checkpoint
from training.released import stable_version
from training.small_model import SmallClassifier, SmallConfig
from training.tokenizer import build_tokenizer
from training.trainer import Epoch, Trained, predict, train

# What a user reads beside a label; other labels stand for themselves.
EXPLANATIONS = {"negative": "这是一条负面评价", "positive": "这是一条正面评价"}
REFUSED = "refused"  # in place of a version, in the training-cost event of a model that was not published


@dataclass(frozen=True)
class Request:
    """What to train, and of what. Without `data` the default reviews; without `init_from` the small model."""

    models_dir: Path
    name: str
    training_dir: Path
    config: TrainingConfig
    data: Path | None = None
    text_column: str = "text"
    label_column: str = "label"
    limit: int | None = None
    init_from: str | None = None
    pool_price: PoolPrice | None = None
    model_config_file: Path | None = None  # models.config in models_dir
    in_service: int | None = None  # the version that a new one is compared with; the one in service
    publish_anyway: str | None = None  # the reason to pass over the gate's no


@dataclass(frozen=True)
class Result:
    """What one training came to. `seconds` are of training alone: no reading, baseline or export.

    `folder` is the published version, or where the card of one that was refused lies; `cost_event` is the
    file of its training-cost event.
    """

    folder: Path
    verdict: Verdict
    cost_event: Path
    dataset: Dataset
    test: Metrics
    baseline: Baseline
    parameters: int
    seconds: float
    device: str


def train_and_publish(
    request: Request, devices: Devices, on_epoch: Callable[[Epoch], None] = lambda epoch: None
) -> Result | None:
    """Train a classifier and its baseline on the same split, and publish it if the gate lets it pass.

    A run that was killed goes on when the same request and data are given again. The test split is looked at
    once, after training. What the run took goes to training_dir as an event, whatever the gate says. Of
    several machines only the chief has a result.

    Raises: TrainingError, with the codes of `load_texts`, `load_checkpoint`, `encode_all`, `train`,
        `export_model`, `write_event` and `stable_version`.
    """
    begun = time.monotonic()
    check_model_name(request.name)  # before minutes of work
    make_writable(request.training_dir)
    _compared_with(request)
    dataset = load_texts(request.data, request.text_column, request.label_column, request.limit)
    checkpoint = load_checkpoint(request.init_from) if request.init_from else None
    tokenizer = checkpoint.tokenizer if checkpoint else build_tokenizer(dataset.train.texts)
    sizes: Any = (
        checkpoint.config
        if checkpoint
        else _small(tokenizer.get_vocab_size(with_added_tokens=True), len(dataset.labels))
    )
    dataset, encoded = encode_all(tokenizer, dataset, sizes.max_length_tokens)
    learnt_anew: list[str] = []

    def build(compute: str = devices.compute) -> Classifier:
        if checkpoint is None:
            return SmallClassifier(sizes, request.config.seed)
        model = BertClassifier(sizes, len(dataset.labels), request.config.seed, compute)
        learnt_anew[:] = checkpoint.fill_classifier(model)
        return model

    run = request.training_dir / "runs" / f"{request.name}-{_run_id(request, dataset, checkpoint, devices)}"
    checkpoints = Checkpoints(run, chief=devices.chief)
    try:
        trained = _train_logged(build, encoded, request.config, devices, checkpoints, on_epoch)
        if not devices.chief:
            return None
        model = build("float32")
        for variable, value in zip(model.variables, trained.weights):
            variable.assign(value)
        probabilities = [predict(model, split) for split in encoded[1:]]
        validation, test = (measure(s.labels, p) for s, p in zip(encoded[1:], probabilities))
        simple = baseline(dataset)
        beside = _compared_with(request)  # anew: it may have been released meanwhile
        rival = in_service(request.models_dir, request.name, beside, dataset.labels, dataset.test)
        right = probabilities[1].argmax(1) == encoded[2].labels
        verdict = judge(right, simple, rival, request.publish_anyway)
        card = {
            "task": "classification",
            "labels": _explained(dataset.labels),
            "data": {"name": dataset.name, "sha256": dataset.sha256, "counts": dataset.counts},
            "metrics": {"validation": validation.to_json(), "test": test.to_json()},
            "baseline": {"name": simple.name, "test": simple.test.to_json()},
            "gate": verdict.to_json(),
            "checkpoint": checkpoint and {"source": checkpoint.source, "sha256": checkpoint.sha256},
            "training": {
                "seconds": round(trained.seconds, 1),
                "device": devices.kind,
                "devices": devices.count,
                "precision": devices.compute,
                "parameters": parameter_count(model),
                "epochs_trained": len(trained.epochs),
                "epoch_kept": min(trained.epochs, key=lambda e: e.validation_log_loss).number,
                **asdict(request.config),
                "learnt_anew": learnt_anew,
                "model": {"kind": type(model).__name__, **asdict(sizes)},
            },
        }
        pictures = {
            "learning_curves.png": learning_curves(trained.epochs),
            "confusion_matrix.png": confusion_matrix(test, dataset.labels),
        }
        if verdict.publish:
            longest = sizes.max_length_tokens
            folder = export_model(model, tokenizer, longest, request.models_dir, request.name, card, pictures)
        else:
            folder = write_refused(request.training_dir / REFUSED, request.name, card, pictures)
        cost = Run(
            model=request.name,
            model_version=folder.name if verdict.publish else REFUSED,
            device=devices.kind,
            device_seconds=round(trained.seconds * devices.count, 3),
            wall_seconds=round(time.monotonic() - begun + trained.seconds_before, 3),
            examples=len(dataset.train.texts),
            code_version=code_version(),
        )
        cost_event = write_event(request.training_dir, cost, request.pool_price)
        checkpoints.remove()
    finally:
        checkpoints.close()
    return Result(
        folder,
        verdict,
        cost_event,
        dataset,
        test,
        simple,
        parameter_count(model),
        trained.seconds,
        devices.kind,
    )


def _compared_with(request: Request) -> int | None:
    """The version that was named, or else the stable one; None: neither."""
    file = request.model_config_file or request.models_dir / "models.config"
    return request.in_service or stable_version(file, request.name)


def _explained(labels: Sequence[str]) -> list[dict[str, str]]:
    return [{"name": label, "explanation": EXPLANATIONS.get(label, label)} for label in labels]


def _small(vocabulary_size: int, labels: int) -> SmallConfig:
    """The small model; with many labels, fewer buckets of n-grams, since each has a number for each label."""
    fewer = max(0, (labels - 1).bit_length() - 2)
    return SmallConfig(vocabulary_size, labels, ngram_bits=max(12, 20 - fewer))


def _run_id(request: Request, dataset: Dataset, checkpoint: Checkpoint | None, devices: Devices) -> str:
    """What two runs share only if one can go on where the other stopped."""
    told = [
        asdict(request.config), dataset.sha256, dataset.counts, checkpoint and checkpoint.sha256,
        code_version(), tf.__version__, devices.count, devices.compute,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def _train_logged(
    build: Callable[[], Classifier],
    encoded: list[Encoded],
    config: TrainingConfig,
    devices: Devices,
    checkpoints: Checkpoints,
    on_epoch: Callable[[Epoch], None],
) -> Trained:
    """Train, and write what each epoch came to for TensorBoard."""
    if not devices.chief:
        return train(build, encoded[0], encoded[1], config, devices, checkpoints)
    started = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    curves = tf.summary.create_file_writer(str(checkpoints.folder / "tensorboard" / started))

    def log(epoch: Epoch) -> None:
        with curves.as_default(step=epoch.number):
            tf.summary.scalar("loss/training", epoch.training_loss)
            tf.summary.scalar("loss/validation", epoch.validation_log_loss)
            tf.summary.scalar("accuracy/validation", epoch.validation_accuracy)
        curves.flush()
        on_epoch(epoch)

    return train(build, encoded[0], encoded[1], config, devices, checkpoints, log)
