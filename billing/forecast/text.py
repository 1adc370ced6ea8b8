"""A forecast as text, as CSV and as charts."""

from __future__ import annotations

import csv
import io
from decimal import Decimal
from fractions import Fraction

import numpy as np
from matplotlib.font_manager import FontProperties

from billing import money
from billing.forecast.model import Reason
from billing.forecast.report import Report, Series, SeriesKind
from billing.reports import drawing
from billing.reports.words import Language
from billing.text_table import text_table

_HEADINGS: dict[SeriesKind, str] = {"total": "", "department": "department ", "model": "model "}
_WHY: dict[Reason, str] = {
    "not_better": "the seasonal model was no better than the last week again, which is shown",
    "short": "too few weeks to hold some back; the last week again is shown",
    "too_short": "less than two weeks of usage: nothing is forecast",
    "unused": "not used in the last four weeks: nothing is forecast",
}
_CHART: dict[Language, dict[str, str]] = {
    "en": {
        "department": "Tokens a day by department", "model": "Tokens a day by model", "total": "Tokens a day",
        "used": "used", "expected": "forecast", "band": "8 of 10 outcomes", "simulated": "simulated",
    },
    "zh": {
        "department": "各部门每日 token", "model": "各模型每日 token", "total": "每日 token",
        "used": "实际", "expected": "预测", "band": "八成可能区间", "simulated": "模拟数据",
    },
}  # fmt: skip
_SHOWN_DAYS = 120
_MOST = 8  # series of a chart


def tell_forecast(report: Report) -> str:
    """The quarter's forecast as text, a line a series."""
    lines = [
        f"Forecast of {report.first} to {report.end}, from {_days((report.last - report.begun).days + 1)} "
        f"up to {report.last}.",
        "",
    ]
    rows = [["", "tokens", "8 of 10 between", "cost", "error", "naive", "method"]]
    for each in report.series:
        expected, low, high = each.tokens
        known = each.forecast.method != "none"
        rows.append(
            [
                f"{_HEADINGS[each.kind]}{each.name}",
                _short(expected) if known else "-",
                f"{_short(low)} – {_short(high)}" if known else "-",
                _cost(each) if known else "-",
                _percent(each.forecast.error),
                _percent(each.forecast.naive_error),
                {"model": "seasonal", "naive": "last week", "none": "none"}[each.forecast.method],
            ]
        )
    lines += text_table(rows)
    capacities = [_capacity(each) for each in report.series if each.capacity]
    if capacities:
        lines += ["", "Needed in the busiest hour of its last four weeks, in tokens a second:", *capacities]
    lines += [
        "",
        "Error: how far off, of what was used, on up to 12 weeks that were held back; naive: of the last",
        "week again. Cost: at what a token was billed at in the last four weeks.",
    ]
    for each in report.series:
        if each.forecast.reason != "better":
            lines.append(f"{_HEADINGS[each.kind]}{each.name}: {_WHY[each.forecast.reason]}.")
    if report.gaps:
        named = ", ".join(map(str, report.gaps[:5])) + (" …" if len(report.gaps) > 5 else "")
        lines.append(f"{_days(len(report.gaps))} without any event taken as missing: {named}.")
    return "\n".join(lines)


def write_forecast(report: Report) -> bytes:
    """The forecast of each day as CSV."""
    out = io.StringIO(newline="")
    table = csv.writer(out, lineterminator="\r\n")
    table.writerow(["kind", "name", "day", "expected_tokens", "low_tokens", "high_tokens", "method"])
    for each in report.series:
        if each.forecast.method == "none":
            continue
        low, high = each.forecast.band()
        for ahead, expected in enumerate(each.forecast.expected):
            numbers = (round(float(value)) for value in (expected, low[ahead], high[ahead]))
            table.writerow([each.kind, each.name, report.day(ahead), *numbers, each.forecast.method])
    return out.getvalue().encode()


def draw_forecast(
    report: Report, kind: SeriesKind, language: Language, *, simulated: bool = False
) -> bytes | None:
    """The largest series of a kind, with their forecasts and intervals; None: there is none."""
    told = _CHART[language]
    shown = [each for each in report.series if each.kind == kind and each.forecast.method != "none"][:_MOST]
    if not shown:
        return None
    figure = drawing.figure_of(80 + 130 * len(shown))
    title = told[kind] + (f" ({told['simulated']})" if simulated else "")
    for number, (axes, each) in enumerate(
        zip(figure.subplots(len(shown), 1, sharex=True, squeeze=False).flat, shown, strict=True)
    ):
        drawing.dress(axes, title if not number else "")
        used = each.used[-_SHOWN_DAYS:]
        ahead = np.arange(1, len(each.forecast.expected) + 1)
        low, high = each.forecast.band()
        # The first says for all what is what.
        names = [None if number else told[name] for name in ("used", "band", "expected")]
        past = np.arange(1 - len(used), 1)
        axes.plot(past, used, color=drawing.PROMPT, linewidth=1.2, label=names[0])
        axes.fill_between(ahead, low, high, color=drawing.COMPLETION, alpha=0.2, linewidth=0, label=names[1])
        axes.plot(ahead, each.forecast.expected, color=drawing.COMPLETION, linewidth=1.2, label=names[2])
        # A surge, or the widest interval, must not make everything else a flat line.
        top = max(np.quantile(used, 0.98), np.quantile(high, 0.9), each.forecast.expected.max())
        axes.set_ylim(0, 1.1 * float(top) or 1)
        axes.set_xlim(1 - len(used), len(ahead))
        drawing.whole_numbers(axes)
        drawing.label_axes(axes, y=drawing.fitted(each.name))
        places = [place for place in range(1 - len(used), len(ahead) + 1) if report.day(place - 1).day == 1]
        axes.set_xticks(places, [f"{report.day(place - 1):%Y-%m}" for place in places])
    figure.legend(
        loc="outside lower center", ncols=3, frameon=False, labelcolor=drawing.INK,
        prop=FontProperties(family=drawing.font(), size=drawing.TEXT_PT),
    )  # fmt: skip
    return drawing.png(figure)


def _cost(each: Series) -> str:
    if each.cost is None or each.currency is None:
        return "-"
    # In whole units: a forecast knows no cents.
    unit = 10 ** money.decimals(each.currency)
    whole = int(money.shown(Fraction(each.cost[0], unit), 0)) * unit
    return money.format_amount(whole, each.currency).split(".")[0]


def _capacity(each: Series) -> str:
    need = each.capacity
    if need is None:
        return ""
    told = f"  {each.name}: {need.needed:,}, perhaps {need.most:,}"
    if need.pool is None:
        return f"{told}; no pool of costs.toml serves it"
    if need.available is None:
        return f"{told}; what the pool {need.pool} can do is unknown"
    part = Fraction(need.needed * 100) / Fraction(need.available)
    percent = money.shown(part, 0) if part >= 1 or not part else "under 1"
    return f"{told}; the pool {need.pool} can do {need.available:,}: {percent}% of it"


def _days(count: int) -> str:
    return "1 day" if count == 1 else f"{count:,} days"


def _short(tokens: int) -> str:
    """'1,250', '24.3 M', '1.20 G': three digits say all that a forecast knows."""
    if tokens < 10**4:
        return f"{tokens:,}"
    number = Decimal(f"{tokens:.2e}")
    power, unit = next(each for each in ((9, " G"), (6, " M"), (3, " k")) if number >= 10 ** each[0])
    return f"{number.scaleb(-power):,f}{unit}"


def _percent(part: float | None) -> str:
    return "-" if part is None else f"{100 * part:.1f}%"
