"""What charts are drawn with: figures, colours, letters, and bars with their values beside them.

Drawn without pyplot, so that threads may draw at once.
"""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import repeat
from typing import Any

import noto_cjk_sans_otc  # type: ignore[import-untyped]  # it has one constant
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager, get_font
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

from billing.money import to_decimal

WIDTH_PX = 600  # as shown; drawn twice as fine
_DPI = 192
TEXT_PT, _TITLE_PT = 11, 12.5
_MARGIN, _GAP = 4, 16
_COLOURS = 64
_CHINESE_FACE = "Noto Sans CJK SC"
# Told apart by people who see colours differently, and 3:1 or more against white.
PROMPT, COMPLETION, EARLIER, INK, FAINT, _GRID = (
    "#0072b2", "#d55e00", "#5a9bc9", "#26323f", "#5b6875", "#dde3e8",
)  # fmt: skip
_LABEL_COLUMNS = 26


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a bar chart: a bar of `value`, or without one only words; exact values beside it."""

    label: str
    value: float | None
    texts: tuple[str, ...]
    heading: bool = False


def bars(title: str, headings: tuple[str, ...], rows: Sequence[Row]) -> Figure:
    """Labels, horizontal bars, and exact values in columns on the right; laid out in pixels."""
    top, step = 62, 23
    height = top + step * len(rows)
    figure = Figure(figsize=(WIDTH_PX / 96, height / 96), dpi=_DPI, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH_PX), ylim=(height, 0))
    axes.set_axis_off()
    axes.text(_MARGIN, 24, _plain(title), **font_of(size=_TITLE_PT))

    def write(x: float, y: float, text: str, side: str, colour: str = INK) -> Text:
        return axes.text(x, y + 5, _plain(text), ha=side, **font_of(colour))  # y is the middle of the line

    middles = [top + step * place for place in range(len(rows))]
    right: float = WIDTH_PX - _MARGIN
    for column, heading in reversed(list(enumerate(headings))):
        texts = [write(right, top - step, heading, "right", FAINT)]
        told = [(y, row.texts[column]) for y, row in zip(middles, rows, strict=True) if row.texts]
        texts += [write(right, y, text, "right") for y, text in told]
        right -= _widest(texts) + _GAP
    labels = [
        write(_MARGIN, y, fitted(row.label), "left", FAINT if row.heading else INK)
        for y, row in zip(middles, rows, strict=True)
    ]
    left = _MARGIN + _widest(labels) + _GAP

    values = [row.value for row in rows if row.value is not None]
    lowest, highest = min([*values, 0]), max([*values, 0])
    scale = max(right - left, 1) / ((highest - lowest) or 1)
    axes.barh(
        [y for y, row in zip(middles, rows, strict=True) if row.value is not None],
        [value * scale for value in values],
        left=left - lowest * scale,
        height=14,
        color=PROMPT,
    )
    axes.set(xlim=(0, WIDTH_PX), ylim=(height, 0))  # bars move the limits
    return figure


def _widest(texts: Iterable[Text]) -> float:
    return max(text.get_window_extent().width for text in texts) * 96 / _DPI


def figure_of(height_px: int) -> Figure:
    """A chart as wide as the mail, and so high."""
    return Figure(figsize=(WIDTH_PX / 96, height_px / 96), dpi=_DPI, facecolor="white", layout="constrained")


def dress(axes: Axes, title: str) -> None:
    """Title, grid and letters of a chart."""
    if title:
        axes.figure.suptitle(_plain(title), x=_MARGIN / WIDTH_PX, ha="left", **font_of(size=_TITLE_PT))
    axes.tick_params(labelfontfamily=font(), labelsize=TEXT_PT, colors=INK, length=0, pad=5)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#9aa5b1")


def label_axes(axes: Axes, *, x: str = "", y: str = "") -> None:
    """Say what its axes are."""
    if x:
        axes.set_xlabel(_plain(x), **font_of())
    if y:
        axes.set_ylabel(_plain(y), **font_of())


def columns(
    axes: Axes,
    places: Iterable[float],
    heights: Iterable[float],
    *,
    bottoms: Iterable[float] = repeat(0.0),
    width: float = 0.8,
    **look: Any,
) -> None:
    """Upright bars as one artist: matplotlib's own are one each, which takes it half the time of a chart.

    `look`: properties of a `PolyCollection`, such as its colours and its label.
    """
    half = width / 2
    corners = [
        [(at - half, low), (at - half, low + high), (at + half, low + high), (at + half, low)]
        for at, low, high in zip(places, bottoms, heights, strict=False)
    ]
    drawn = PolyCollection(corners, linewidth=0, **look)
    drawn.sticky_edges.y.append(0)  # no margin below the ground
    axes.add_collection(drawn)
    axes.autoscale_view()


def legend(figure: Figure, columns: int) -> None:
    """Name what is drawn, beside the title."""
    figure.legend(
        loc="upper right", ncols=columns, frameon=False, borderaxespad=0.2, handlelength=1,
        prop=FontProperties(family=font(), size=TEXT_PT), labelcolor=INK,
    )  # fmt: skip


def whole_numbers(axes: Axes) -> None:
    """Count in whole numbers."""
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def height_of(amount_minor: int, currency: str) -> float:
    """Where on the paper an amount lies; what is written beside it is exact."""
    return float(to_decimal(amount_minor, currency))


def png(figure: Figure) -> bytes:
    """Few inks need few colours: a palette makes the file a third of what it would be."""
    raw = io.BytesIO()
    figure.savefig(raw, format="rgba")
    width, height = (int(side) for side in figure.bbox.size)
    picture = Image.frombytes("RGBA", (width, height), raw.getvalue()).convert("RGB")
    buffer = io.BytesIO()
    picture.quantize(_COLOURS, dither=Image.Dither.NONE).save(buffer, "png", dpi=(_DPI, _DPI))
    return buffer.getvalue()


def font_of(colour: str = INK, size: float = TEXT_PT) -> dict[str, Any]:
    """Letters of this colour and size."""
    return {"fontfamily": font(), "fontsize": size, "color": colour}


@cache
def font() -> str:
    """Make the font that draws Chinese known to matplotlib, once."""
    fontManager.addfont(str(noto_cjk_sans_otc.FONT_PATH))
    if _CHINESE_FACE in fontManager.get_font_names():
        return _CHINESE_FACE
    # matplotlib 3.10, the last for Python 3.10, knows the file's first face only: the same letters, some
    # of them in their Japanese shape.
    return FontProperties(fname=str(noto_cjk_sans_otc.FONT_PATH)).get_name()


@cache
def _drawable() -> frozenset[int]:
    return frozenset(get_font(str(noto_cjk_sans_otc.FONT_PATH)).get_charmap())


def _plain(text: str) -> str:
    """Text as it can be drawn: no formulas between dollar signs, and a box for what the font lacks."""
    return "".join(c if ord(c) in _drawable() else "□" for c in text).replace("$", r"\$")


def fitted(text: str) -> str:
    """A long name without its middle; the tables of the mail and the CSV have it in full."""
    if _columns(text) <= _LABEL_COLUMNS:
        return text
    head, tail = "", ""
    for left, right in zip(text, reversed(text), strict=True):
        if _columns(head + left + tail) < _LABEL_COLUMNS:
            head += left
        if _columns(head + tail + right) < _LABEL_COLUMNS:
            tail = right + tail
    return f"{head}…{tail}"


def _columns(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
