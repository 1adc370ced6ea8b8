"""The charts of a day's report, as PNG; drawn without pyplot, so that threads may draw at once."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import noto_cjk_sans_otc  # type: ignore[import-untyped]  # it has one constant
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager, get_font
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

from billing.money import to_decimal
from billing.report import DayReport
from billing.texts import words
from billing.totals import Part, sum_parts
from billing.words import Language, Words, number

WIDTH_PX = 600  # as shown; drawn twice as fine
_DPI = 192
_TEXT_PT, _TITLE_PT = 11, 12.5
_MARGIN, _GAP = 4, 16
_COLOURS = 64
_CHINESE_FACE = "Noto Sans CJK SC"
# Told apart by people who see colours differently, and 3:1 or more against white.
_PROMPT, _COMPLETION, _EARLIER, _INK, _FAINT, _GRID = (
    "#0072b2", "#d55e00", "#5a9bc9", "#26323f", "#5b6875", "#dde3e8",
)  # fmt: skip
_LABEL_COLUMNS = 26
_ROWS_A_GROUP = 6


def draw_charts(report: DayReport, language: Language) -> dict[str, bytes]:
    """Every chart that has something to show, as PNG by name, 1,200 pixels wide.

    `hours`: tokens by hour; `trend`: tokens and bill by day, once two days have usage; `users`: the ten
    with most tokens; `costs`: amounts by model, project and department, or tokens where nothing is
    rated. A day without usage has no charts but the trend.
    """
    told = words(language)
    drawn = {}
    if report.total.requests:
        drawn["hours"] = _hours(report, told)
    if sum(day.total_tokens > 0 for day in report.trend) > 1:
        drawn["trend"] = _trend(report, told)
    if report.total.requests:
        drawn["users"] = _users(report, told)
        drawn["costs"] = _costs(report, told)
    return {name: _png(figure) for name, figure in drawn.items()}


def _hours(report: DayReport, told: Words) -> Figure:
    figure = _figure(240)
    axes = figure.add_subplot()
    _dress(axes, told.chart_hours)
    places = range(len(report.hours))
    prompt = [hour.prompt_tokens for hour in report.hours]
    completion = [hour.completion_tokens for hour in report.hours]
    axes.bar(places, prompt, color=_PROMPT, label=told.prompt, width=0.8)
    axes.bar(places, completion, bottom=prompt, color=_COMPLETION, label=told.completion, width=0.8)
    axes.set_xlim(-0.6, len(places) - 0.4)
    shown = [place for place in places if report.hours[place].start.hour % 3 == 0]
    axes.set_xticks(shown, [f"{report.hours[place].start:%H:%M}" for place in shown])
    _label(axes, x=told.axis_hour.format(zone=report.time_zone), y=told.axis_tokens)
    _whole_numbers(axes)
    figure.legend(
        loc="upper right", ncols=2, frameon=False, borderaxespad=0.2, handlelength=1,
        prop=FontProperties(family=_font(), size=_TEXT_PT), labelcolor=_INK,
    )  # fmt: skip
    return figure


def _trend(report: DayReport, told: Words) -> Figure:
    billed = any(day.amount_minor is not None for day in report.trend)
    figure = _figure(340 if billed else 220)
    top, *below = figure.subplots(2 if billed else 1, 1, sharex=True, squeeze=False).flat
    places = range(len(report.trend))
    colours = [_EARLIER] * (len(places) - 1) + [_PROMPT]
    _dress(top, told.chart_trend if billed else told.chart_trend_tokens)
    top.bar(places, [day.total_tokens for day in report.trend], color=colours, width=0.8)
    _label(top, y=told.axis_tokens)
    _whole_numbers(top)
    if below and report.currency:
        _dress(below[0], "")
        amounts = [_height(day.amount_minor or 0, report.currency) for day in report.trend]
        below[0].bar(places, amounts, color=colours, width=0.8)
        below[0].yaxis.set_major_locator(MaxNLocator(4))
        below[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        _label(below[0], y=told.axis_cost.format(currency=report.currency))
    figure.align_ylabels()
    bottom = below[0] if below else top
    step = -(-len(places) // 8)
    shown = list(places)[::-step][::-1]  # counted from the last: the day itself always has its label
    bottom.set_xlim(-0.6, len(places) - 0.4)
    bottom.set_xticks(shown, [f"{report.trend[place].day:%m-%d}" for place in shown])
    return figure


def _users(report: DayReport, told: Words) -> Figure:
    rows = [_user_row(part, part.totals.total_tokens, told) for part in report.top_users]
    if report.other_users:
        label = told.count(told.others, len(report.other_users))
        rows.append(_user_row(Part((label,), sum_parts(report.other_users)), None, told))
    return _bars(told.chart_users, (told.axis_tokens, told.amount), rows)


def _user_row(part: Part, value: float | None, told: Words) -> _Row:
    return _Row(part.name, value, (number(part.totals.total_tokens), told.money(part.totals)))


def _costs(report: DayReport, told: Words) -> Figure:
    currency = report.total.currency
    rows: list[_Row] = []
    groups = (
        (told.dimensions["model"], report.models),
        (told.dimensions["project"], report.projects),
        (told.dimensions["department"], report.departments),
    )
    for heading, parts in groups:
        rows.append(_Row(heading.capitalize(), None, (), heading=True))
        ordered = (
            sorted(parts, key=lambda part: -(part.totals.amount_minor or 0)) if currency else list(parts)
        )
        rows += [_cost_row(part, currency, told) for part in ordered[:_ROWS_A_GROUP]]
        if others := ordered[_ROWS_A_GROUP:]:
            rest = Part((told.count(told.others, len(others)),), sum_parts(others))
            rows.append(replace(_cost_row(rest, currency, told), value=None))
    title = told.chart_costs if currency else told.chart_tokens
    return _bars(title, (told.amount if currency else told.axis_tokens,), rows)


def _cost_row(part: Part, currency: str | None, told: Words) -> _Row:
    if currency is None:
        return _Row(part.name, part.totals.total_tokens, (number(part.totals.total_tokens),))
    return _Row(part.name, _height(part.totals.amount_minor or 0, currency), (told.money(part.totals),))


@dataclass(frozen=True, slots=True)
class _Row:
    """A line of a bar chart: a bar of `value`, or without one only words; exact values beside it."""

    label: str
    value: float | None
    texts: tuple[str, ...]
    heading: bool = False


def _bars(title: str, headings: tuple[str, ...], rows: Sequence[_Row]) -> Figure:
    """Labels, horizontal bars, and exact values in columns on the right; laid out in pixels."""
    top, step = 62, 23
    height = top + step * len(rows)
    figure = Figure(figsize=(WIDTH_PX / 96, height / 96), dpi=_DPI, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH_PX), ylim=(height, 0))
    axes.set_axis_off()
    axes.text(_MARGIN, 24, _plain(title), **_font_of(size=_TITLE_PT))

    def write(x: float, y: float, text: str, side: str, colour: str = _INK) -> Text:
        return axes.text(x, y + 5, _plain(text), ha=side, **_font_of(colour))  # y is the middle of the line

    middles = [top + step * place for place in range(len(rows))]
    right: float = WIDTH_PX - _MARGIN
    for column, heading in reversed(list(enumerate(headings))):
        texts = [write(right, top - step, heading, "right", _FAINT)]
        told = [(y, row.texts[column]) for y, row in zip(middles, rows, strict=True) if row.texts]
        texts += [write(right, y, text, "right") for y, text in told]
        right -= _widest(texts) + _GAP
    labels = [
        write(_MARGIN, y, _fit(row.label), "left", _FAINT if row.heading else _INK)
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
        color=_PROMPT,
    )
    axes.set(xlim=(0, WIDTH_PX), ylim=(height, 0))  # bars move the limits
    return figure


def _widest(texts: Iterable[Text]) -> float:
    return max(text.get_window_extent().width for text in texts) * 96 / _DPI


def _figure(height_px: int) -> Figure:
    return Figure(figsize=(WIDTH_PX / 96, height_px / 96), dpi=_DPI, facecolor="white", layout="constrained")


def _dress(axes: Axes, title: str) -> None:
    if title:
        axes.figure.suptitle(_plain(title), x=_MARGIN / WIDTH_PX, ha="left", **_font_of(size=_TITLE_PT))
    axes.tick_params(labelfontfamily=_font(), labelsize=_TEXT_PT, colors=_INK, length=0, pad=5)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#9aa5b1")


def _label(axes: Axes, *, x: str = "", y: str = "") -> None:
    if x:
        axes.set_xlabel(_plain(x), **_font_of())
    if y:
        axes.set_ylabel(_plain(y), **_font_of())


def _whole_numbers(axes: Axes) -> None:
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _height(amount_minor: int, currency: str) -> float:
    """Where on the paper an amount lies; what is written beside it is exact."""
    return float(to_decimal(amount_minor, currency))


def _png(figure: Figure) -> bytes:
    """Few inks need few colours: a palette makes the file a third of what it would be."""
    raw = io.BytesIO()
    figure.savefig(raw, format="rgba")
    width, height = (int(side) for side in figure.bbox.size)
    picture = Image.frombytes("RGBA", (width, height), raw.getvalue()).convert("RGB")
    buffer = io.BytesIO()
    picture.quantize(_COLOURS, dither=Image.Dither.NONE).save(buffer, "png", dpi=(_DPI, _DPI))
    return buffer.getvalue()


def _font_of(colour: str = _INK, size: float = _TEXT_PT) -> dict[str, Any]:
    return {"fontfamily": _font(), "fontsize": size, "color": colour}


@cache
def _font() -> str:
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


def _fit(text: str) -> str:
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
