from __future__ import annotations

import io
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from billing.costs.unit_costs import UnitCost
from billing.reports.charts import draw_charts, unit_costs
from billing.reports.day import DayReport, Hour
from billing.reports.texts import words
from billing.reports.words import Language
from billing.totals import Part, Totals
from tests.billing.factories import DAY
from tests.billing.sample_reports import a_report, a_trend, an_empty_report, some

BLUE, ORANGE = (0, 114, 178), (213, 94, 0)


def picture(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png)).convert("RGB")


def area(png: bytes, colour: tuple[int, int, int]) -> int:
    """How many pixels are about this colour; a palette may have moved it a little."""
    pixels = np.asarray(picture(png)).astype(int)
    return int((abs(pixels - colour) < 12).all(axis=2).sum())


def a_busy_report() -> DayReport:
    parts = tuple(Part((f"user-{n:02}",), some(5000 - n, 4000 - n)) for n in range(14))
    return a_report(users=parts, projects=parts[:9], trend=a_trend(30))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_day_with_a_past_has_all_four_charts(language: Language) -> None:
    charts = draw_charts(a_busy_report(), language)
    assert list(charts) == ["hours", "trend", "users", "costs"]
    for png in charts.values():
        assert png.startswith(b"\x89PNG")
        assert picture(png).width == 1200
        assert len(png) < 80_000


def test_charts_of_the_same_report_are_the_same_bytes() -> None:
    assert draw_charts(a_busy_report(), "zh") == draw_charts(a_busy_report(), "zh")


def test_the_first_day_has_no_trend() -> None:
    assert list(draw_charts(a_report(), "en")) == ["hours", "users", "costs"]


def test_a_day_without_usage_has_nothing_to_draw_but_the_days_before() -> None:
    assert draw_charts(an_empty_report(), "en") == {}
    assert list(draw_charts(an_empty_report(trend=a_trend(3)), "en")) == ["trend"]


def test_prompt_and_completion_tokens_are_stacked_in_their_proportion() -> None:
    hours = tuple(replace(hour, prompt_tokens=300, completion_tokens=100) for hour in a_report().hours)
    png = draw_charts(a_report(hours=hours), "en")["hours"]
    assert 2.8 < area(png, BLUE) / area(png, ORANGE) < 3.2


def test_a_day_of_25_hours_is_drawn_in_full() -> None:
    hours = a_report().hours
    longer = (*hours[:3], Hour(hours[2].start, 5, 900, 300), *hours[3:])
    assert "hours" in draw_charts(a_report(hours=longer), "en")


def test_tokens_are_drawn_where_nothing_has_an_amount() -> None:
    total = some(minor=None, unrated_tokens=1200)
    charts = draw_charts(a_report(total, trend=a_trend(3, minor=None)), "zh")
    assert area(charts["costs"], BLUE) > 10_000
    assert picture(charts["trend"]).height < 600  # one panel, of tokens


def test_a_bill_that_gives_money_back_is_drawn() -> None:
    back = some(minor=-500)
    parts = (Part(("refunded",), back), Part(("charged",), some(minor=300)))
    assert draw_charts(a_report(back, projects=parts, trend=a_trend(2, minor=-5)), "en")


@pytest.mark.parametrize(
    "name",
    [
        "x" * 128,
        "客服机器人" * 30,
        "🙂 emoji 🧾",
        "$a^2$ \\frac{1}{2} $$",
        "مرحبا\u202e txt",
        "line\nbreak\x00",
        "",
    ],
)
def test_any_name_is_drawn_without_a_warning_or_a_formula(name: str) -> None:
    part = (Part((name,), some()),)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        charts = draw_charts(a_report(users=part, projects=part, departments=part, models=part), "zh")
    for png in charts.values():
        assert picture(png).width == 1200
        assert picture(png).height < 1000


def test_chinese_letters_are_drawn_and_not_replaced_by_one_box() -> None:
    def chart(name: str) -> bytes:
        return draw_charts(a_report(projects=(Part((name,), some()),)), "zh")["costs"]

    assert len({chart("客服"), chart("检索"), chart("□□")}) == 3


def test_threads_draw_the_same_charts_at_once() -> None:
    reports = [a_report(some(1000 + n, n), trend=a_trend(5)) for n in range(4)]
    alone = [draw_charts(report, "zh") for report in reports]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda report: draw_charts(report, "zh"), reports))
    assert together == alone


def test_huge_numbers_fit() -> None:
    huge = Totals(
        requests=10**9, prompt_tokens=10**13, completion_tokens=10**12, amount_minor=10**13, currency="CNY"
    )
    part = (Part(("user-a",), huge),)
    charts = draw_charts(a_report(huge, users=part, projects=part, departments=part, models=part), "en")
    assert set(charts) == {"hours", "users", "costs"}


@pytest.mark.parametrize("percent", ["0.4", "1.3", "7", "60", "99"])
def test_each_percentage_below_an_axis_is_another(percent: str) -> None:
    used = Fraction(percent) / 100
    days = tuple(UnitCost(DAY, "gpu", used * n / 9, Fraction(1, n), "CNY") for n in range(1, 10))
    figure = unit_costs(a_report(unit_costs=days), words("en"))
    figure.canvas.draw()
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert len(set(labels)) == len(labels) > 3
