"""A training in two pictures, as PNG: its learning curves, and which labels it takes for which."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Sequence

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from training.evaluation import Metrics
    from training.trainer import Epoch

_NUMBERED = 12  # labels up to which each cell says its count


def learning_curves(epochs: Sequence[Epoch]) -> bytes:
    """Losses on the left, accuracy on the right, by epoch."""
    figure = _figure(7, 3)
    left, right = figure.subplots(1, 2)
    numbers = [epoch.number for epoch in epochs]
    left.plot(numbers, [epoch.training_loss for epoch in epochs], "o-", label="training loss")
    left.plot(numbers, [epoch.validation_log_loss for epoch in epochs], "o-", label="validation log loss")
    left.legend()
    right.plot(numbers, [epoch.validation_accuracy for epoch in epochs], "o-", color="tab:green")
    for axes, title in ((left, "loss, nats"), (right, "validation accuracy")):
        axes.set(title=title, xlabel="epoch", xticks=numbers)
        axes.grid(alpha=0.3)
    return _png(figure)


def confusion_matrix(metrics: Metrics, labels: Sequence[str]) -> bytes:
    """True labels by row, said labels by column, of the held-out texts; shades are shares of a row."""
    _know_chinese()
    side = min(3 + 0.4 * len(labels), 16)
    figure = _figure(side, side)
    axes = figure.subplots()
    shares = [[count / max(sum(row), 1) for count in row] for row in metrics.confusion]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    places = range(len(labels))
    axes.set(xticks=places, yticks=places, xlabel="said", ylabel="true")
    axes.set_xticklabels(labels, rotation=45, ha="right")
    axes.set_yticklabels(labels)
    if len(labels) <= _NUMBERED:
        for row in places:
            for column in places:
                dark = shares[row][column] > 0.5
                text = f"{metrics.confusion[row][column]:,}"
                axes.text(column, row, text, ha="center", va="center", color="white" if dark else "black")
    axes.set_title(f"{metrics.correct:,} of {metrics.total:,} held-out texts right")
    return _png(figure)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _know_chinese() -> None:
    """Labels may be Chinese, which matplotlib's own font lacks."""
    from matplotlib import font_manager, rcParams

    try:
        import noto_cjk_sans_otc  # type: ignore[import-untyped]  # it has one constant
    except ImportError:
        return  # as on Python 3.8: such labels are drawn as boxes

    font_manager.fontManager.addfont(str(noto_cjk_sans_otc.FONT_PATH))
    name = font_manager.FontProperties(fname=str(noto_cjk_sans_otc.FONT_PATH)).get_name()
    rcParams["font.family"] = ["DejaVu Sans", name]


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()
