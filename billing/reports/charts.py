"""The charts of a day's report, as PNG; drawn without pyplot, so that threads may draw at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from billing.reports.day import DayReport
from billing.reports.drawing import (
    COMPLETION,
    EARLIER,
    INK,
    PROMPT,
    Row,
    bars,
    columns,
    dress,
    figure_of,
    fitted,
    height_of,
    label_axes,
    legend,
    png,
    whole_numbers,
)  # fmt: skip
from billing.reports.texts import words
from billing.reports.trend import TrendDay
from billing.reports.words import Language, Words, number
from billing.totals import Part, sum_parts

_ROWS_A_GROUP = 6
_FAR_APART = 20  # pools, of which the cheap ones would lie on the ground
_POOL_COLOURS = (PROMPT, COMPLETION, "#007a5a", "#a0527a", "#7a6a00", "#5b6875")


def draw_charts(report: DayReport, language: Language) -> dict[str, bytes]:
    """Every chart that has something to show, as PNG by name, 1,200 pixels wide.

    `hours`: tokens by hour; `trend`: tokens and bill by day, with the band of what is usual, once two days
    have usage; `users`: the ten with most tokens; `costs`: amounts by model, project and department, or
    tokens where nothing is rated; `lengths`: tokens a request by day; `latency`: how long answers took, by
    hour; `unit_costs`: the cost of 1,000 tokens against utilisation, by day. A day without usage has only
    those of several days.
    """
    return {name: draw() for name, draw in drawn(report, language).items()}


def drawn(report: DayReport, language: Language) -> dict[str, Callable[[], bytes]]:
    """The charts that there are for a report, each still to be drawn."""
    several = sum(day.total_tokens > 0 for day in report.trend) > 1
    there = {
        "hours": bool(report.total.requests),
        "trend": several,
        "users": bool(report.total.requests) and report.owner is None,
        "costs": bool(report.total.requests),
        "lengths": several and sum(day.requests > 0 for day in report.trend) > 1,
        "latency": bool(report.latency),
        "unit_costs": len(report.unit_costs) > 1,
    }
    told = words(language)
    return {name: partial(_draw, draw, report, told) for name, draw in _CHARTS.items() if there[name]}


def _draw(draw: Callable[[DayReport, Words], Figure], report: DayReport, told: Words) -> bytes:
    return png(draw(report, told))


def _hours(report: DayReport, told: Words) -> Figure:
    figure = figure_of(240)
    axes = figure.add_subplot()
    dress(axes, told.chart_hours)
    places = range(len(report.hours))
    prompt = [hour.prompt_tokens for hour in report.hours]
    completion = [hour.completion_tokens for hour in report.hours]
    columns(axes, places, prompt, color=PROMPT, label=told.prompt)
    columns(axes, places, completion, bottoms=prompt, color=COMPLETION, label=told.completion)
    _hours_below(axes, report)
    label_axes(axes, x=told.axis_hour.format(zone=report.time_zone), y=told.axis_tokens)
    whole_numbers(axes)
    legend(figure, 2)
    return figure


def _hours_below(axes: Axes, report: DayReport) -> None:
    shown = [place for place, hour in enumerate(report.hours) if hour.start.hour % 3 == 0]
    axes.set_xlim(-0.6, len(report.hours) - 0.4)
    axes.set_xticks(shown, [f"{report.hours[place].start:%H:%M}" for place in shown])


def _trend(report: DayReport, told: Words) -> Figure:
    billed = any(day.amount_minor is not None for day in report.trend)
    figure = figure_of(340 if billed else 220)
    top, *below = figure.subplots(2 if billed else 1, 1, sharex=True, squeeze=False).flat
    places = range(len(report.trend))
    colours = [EARLIER] * (len(places) - 1) + [PROMPT]
    dress(top, told.chart_trend if billed else told.chart_trend_tokens)
    columns(top, places, [day.total_tokens for day in report.trend], color=colours)
    label_axes(top, y=told.axis_tokens)
    whole_numbers(top)
    if any(day.usual for day in report.trend):
        _band(top, report, told)
        legend(figure, 1)
    if below and report.currency:
        dress(below[0], "")
        amounts = [height_of(day.amount_minor or 0, report.currency) for day in report.trend]
        columns(below[0], places, amounts, color=colours)
        below[0].yaxis.set_major_locator(MaxNLocator(4))
        below[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        label_axes(below[0], y=told.axis_cost.format(currency=report.currency))
    figure.align_ylabels()
    _days_below(below[0] if below else top, report.trend)
    return figure


def _band(axes: Axes, report: DayReport, told: Words) -> None:
    """Between which tokens each day would be a usual one."""
    known = [(place, day.usual) for place, day in enumerate(report.trend) if day.usual]
    columns(
        axes,
        [place for place, _ in known],
        [max(usual.high - usual.low, usual.high // 100) for _, usual in known],
        bottoms=[usual.low for _, usual in known],
        color=COMPLETION, alpha=0.35, width=1.0, label=told.usual,
    )  # fmt: skip


def _days_below(axes: Axes, trend: Sequence[TrendDay]) -> None:
    step = -(-len(trend) // 8)
    shown = list(range(len(trend)))[::-step][::-1]  # counted from the last: the day itself has its label
    axes.set_xlim(-0.6, len(trend) - 0.4)
    axes.set_xticks(shown, [f"{trend[place].day:%m-%d}" for place in shown])


def _lengths(report: DayReport, told: Words) -> Figure:
    figure = figure_of(200)
    axes = figure.add_subplot()
    dress(axes, told.chart_lengths)
    used = [(place, day) for place, day in enumerate(report.trend) if day.requests]
    heights = [day.total_tokens / day.requests for _, day in used]
    axes.plot([place for place, _ in used], heights, color=PROMPT, linewidth=2, marker="o", markersize=4)
    axes.set_ylim(0, max(heights) * 1.15)
    label_axes(axes, y=told.axis_tokens)
    whole_numbers(axes)
    _days_below(axes, report.trend)
    return figure


def _latency(report: DayReport, told: Words) -> Figure:
    figure = figure_of(220)
    axes = figure.add_subplot()
    dress(axes, told.chart_latency)
    starts = [hour.start for hour in report.hours]
    known = [(starts.index(each.start), each) for each in report.latency if each.start in starts]
    places = [place for place, _ in known]
    slow, middle = [each.slow_seconds for _, each in known], [each.median_seconds for _, each in known]
    axes.plot(places, slow, color=COMPLETION, linewidth=2, marker="o", markersize=4, label=told.slowest)
    axes.plot(places, middle, color=PROMPT, linewidth=2, marker="o", markersize=4, label=told.median)
    axes.set_ylim(0, max(slow) * 1.15)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
    label_axes(axes, x=told.axis_hour.format(zone=report.time_zone), y=told.axis_seconds)
    _hours_below(axes, report)
    legend(figure, 2)
    return figure


def unit_costs(report: DayReport, told: Words) -> Figure:
    """What 1,000 tokens cost on each day against how busy its machines were."""
    figure = figure_of(260)
    axes = figure.add_subplot()
    dress(axes, told.chart_unit_costs)
    for colour, pool in zip(
        cycle(_POOL_COLOURS), sorted({each.pool for each in report.unit_costs}), strict=False
    ):
        days = [each for each in report.unit_costs if each.pool == pool]
        axes.scatter(
            [100 * float(each.utilisation) for each in days],
            [float(each.unit_cost) for each in days],
            s=[90 if each.day == report.day else 22 for each in days],
            edgecolors=[INK if each.day == report.day else colour for each in days],
            color=colour, label=fitted(pool), zorder=2,
        )  # fmt: skip
    axes.set_xlim(0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}%"))
    costs = [float(each.unit_cost) for each in report.unit_costs if each.unit_cost]
    if costs and max(costs) > _FAR_APART * min(costs):
        axes.set_yscale("log")
    else:
        axes.set_ylim(0)
        axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    currency = report.unit_costs[0].currency
    label_axes(axes, x=told.axis_utilisation, y=told.axis_unit_cost.format(currency=currency))
    legend(figure, 2)
    return figure


def _users(report: DayReport, told: Words) -> Figure:
    rows = [_user_row(part, part.totals.total_tokens, told) for part in report.top_users]
    if report.other_users:
        label = told.count(told.others, len(report.other_users))
        rows.append(_user_row(Part((label,), sum_parts(report.other_users)), None, told))
    return bars(told.chart_users, (told.axis_tokens, told.amount), rows)


def _user_row(part: Part, value: float | None, told: Words) -> Row:
    return Row(part.name, value, (number(part.totals.total_tokens), told.money(part.totals)))


def _costs(report: DayReport, told: Words) -> Figure:
    currency = report.total.currency
    rows: list[Row] = []
    groups = (
        (told.dimensions["model"], report.models),
        (told.dimensions["project"], report.projects),
        (told.dimensions["department"], report.departments),
    )
    for heading, parts in groups:
        rows.append(Row(heading.capitalize(), None, (), heading=True))
        ordered = (
            sorted(parts, key=lambda part: -(part.totals.amount_minor or 0)) if currency else list(parts)
        )
        rows += [_cost_row(part, currency, told) for part in ordered[:_ROWS_A_GROUP]]
        if others := ordered[_ROWS_A_GROUP:]:
            rest = Part((told.count(told.others, len(others)),), sum_parts(others))
            rows.append(replace(_cost_row(rest, currency, told), value=None))
    title = told.chart_costs if currency else told.chart_tokens
    return bars(title, (told.amount if currency else told.axis_tokens,), rows)


def _cost_row(part: Part, currency: str | None, told: Words) -> Row:
    if currency is None:
        return Row(part.name, part.totals.total_tokens, (number(part.totals.total_tokens),))
    return Row(part.name, height_of(part.totals.amount_minor or 0, currency), (told.money(part.totals),))


_CHARTS: dict[str, Callable[[DayReport, Words], Figure]] = {
    "hours": _hours,
    "trend": _trend,
    "users": _users,
    "costs": _costs,
    "lengths": _lengths,
    "latency": _latency,
    "unit_costs": unit_costs,
}
