"""What a language must say, and numbers, names and days as people read them."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from datetime import date
from decimal import ROUND_HALF_UP, Decimal
from typing import Literal

from billing.money import format_amount
from billing.totals import Dimension, Totals

Language = Literal["en", "zh"]
Noun = tuple[str, str]  # for one, and for any other number


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """One language. Names in braces are filled in by `billing.reports.summary` and the templates."""

    language: Language
    html_language: str
    weekdays: tuple[str, ...]
    months: tuple[str, ...]
    day: str
    between: str  # between the items of a list
    between_figures: str
    sentence_gap: str

    dimensions: dict[Dimension, str]
    users: Noun
    projects: Noun
    requests: Noun
    tokens: Noun
    others: Noun
    more: Noun

    title: str
    title_user: str
    title_project: str
    state_closed: str
    state_early: str
    state_draft: str
    state_unbilled: str

    subject: str
    subject_user: str
    subject_project: str
    subject_empty: str
    subject_unrated: str
    subject_change: str
    subject_base: str
    mark: str

    empty: str
    empty_bill: str
    empty_unrated: str
    who_all: str
    who_user: str
    who_project: str
    used: str
    used_cached: str
    costs: str
    no_amount: str
    compared: str
    compared_tokens: str
    nothing_before: str
    rose: str
    fell: str
    same: str
    driver: str
    driver_beyond: str
    driver_corrections: str
    detail: str
    because: dict[str, str]

    notice_draft: str
    notice_unbilled: str
    notice_early: str
    notice_unrated: str
    notice_corrections: str
    notice_corrections_unrated: str
    notice_set_aside: str
    notice_open_days: str
    items: str
    direction: str
    directions: dict[str, str]
    quantity: str
    unit_price: str
    rows_left_out: str
    trend_bars: str
    title_statement: str
    subject_statement: str
    summed_statement: str
    summed_unrated: str
    notice_simulated: str
    simulated: str

    cost: str
    total_tokens: str
    request_count: str
    tokens_per_request: str
    prompt: str
    completion: str
    tile_before: str
    share: str
    amount: str
    unrated: str
    total: str
    by_project: str
    by_department: str
    by_model: str
    top_users: str
    corrections: str
    usage_day: str
    usage_month: str
    proof: str
    proof_text: str
    proof_corrects: str
    attached: str
    attached_both: str
    footer: str

    chart_hours: str
    chart_trend: str
    chart_trend_tokens: str
    chart_users: str
    chart_costs: str
    chart_tokens: str
    axis_hour: str
    axis_tokens: str
    axis_cost: str
    chart_lengths: str
    chart_latency: str
    chart_unit_costs: str
    axis_seconds: str
    axis_utilisation: str
    axis_unit_cost: str
    usual: str
    median: str
    slowest: str

    def count(self, noun: Noun, number: int, *, sign: bool = False) -> str:
        """'1 request', '1,234 requests'; with a sign when it is a change: '+1 request'."""
        return noun[0 if abs(number) == 1 else 1].format(signed(number) if sign else f"{number:,}")

    def date(self, day: date) -> str:
        """'Sunday, 22 November 2026', '2026年11月22日（星期日）'."""
        return self.day.format(
            year=day.year,
            month=self.months[day.month - 1],
            day=day.day,
            weekday=self.weekdays[day.weekday()],
        )

    def money(self, totals: Totals) -> str:
        """The amount, or the word for what has none: never a zero for what is unrated."""
        if totals.amount_minor is None or totals.currency is None:
            return self.unrated if totals.unrated_tokens else "–"
        return format_amount(totals.amount_minor, totals.currency)


def shown(text: str) -> str:
    """A name from outside, safe in a line: what would break it, hide or turn its direction is a �."""
    return "".join("\N{REPLACEMENT CHARACTER}" if _is_hidden(c) else c for c in text)


def _is_hidden(character: str) -> bool:
    return unicodedata.category(character) in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


def number(value: int) -> str:
    """1,248,900."""
    return f"{value:,}"


def signed(value: int) -> str:
    """+1,200, -35, 0."""
    return f"{value:+,}" if value else "0"


def signed_amount(minor: int, currency: str) -> str:
    """+¥2.66, -¥0.07."""
    return ("+" if minor > 0 else "") + format_amount(minor, currency)


def percent(value: Decimal, *, sign: bool = False) -> str:
    """12.3%, with a sign when it is a change: +12.3%."""
    rounded = value.quantize(Decimal("0.1"), ROUND_HALF_UP)
    return f"{rounded:+,}%" if sign and value else f"{rounded:,}%"


def average(value: Decimal | None) -> str:
    """Tokens a request, to one decimal; a dash without requests."""
    return "–" if value is None else f"{value.quantize(Decimal('0.1'), ROUND_HALF_UP):,}"
