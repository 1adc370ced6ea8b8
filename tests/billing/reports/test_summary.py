from __future__ import annotations

import dataclasses
import re
import string
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.reports.day import Correction, OpenDay
from billing.reports.driver import Cause, Change, Driver
from billing.reports.summary import Notice, notices, paragraphs, subject
from billing.reports.texts import CHINESE, ENGLISH
from billing.reports.words import Words, average, number, percent, shown, signed, signed_amount
from billing.totals import Part, Totals
from tests.billing.factories import DAY, ZONE
from tests.billing.sample_reports import BEFORE, a_report, an_empty_report, some

UP = a_report(
    some(1200, 2431, requests=12, cached_tokens=200),
    before=some(1111, 2165, requests=10),
    driver=Driver(
        "amount",
        "project",
        "search",
        Change(1000, 1190),
        Change(2165, 2431),
        some(500, 1000, requests=5),
        some(650, 1190, requests=7),
        "volume",
    ),
)


def driven(cause: Cause, change: Change, whole: Change, **changes: Any) -> Driver:
    values: dict[str, Any] = {"measure": "tokens", "dimension": "user", "name": "user-a"} | changes
    return Driver(change=change, whole=whole, before=some(100), now=some(200), cause=cause, **values)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (ENGLISH, "Tallybook 2026-11-21: ¥24.31 (+12.3%), 1,200 tokens (+8.0% on the day before)"),
        (CHINESE, "Tallybook 2026-11-21：¥24.31（+12.3%），1,200 个 Token（较前一日 +8.0%）"),
    ],
)
def test_the_subject_says_the_day_the_cost_the_tokens_and_the_change(told: Words, expected: str) -> None:
    assert subject(UP, told) == expected


@pytest.mark.parametrize(
    ("changes", "english", "chinese"),
    [
        ({}, "Tallybook 2026-11-21: ¥12.34, 1,200 tokens", "Tallybook 2026-11-21：¥12.34，1,200 个 Token"),
        (
            {"user": "user-a"},
            "Tallybook 2026-11-21, user user-a: ¥12.34, 1,200 tokens",
            "Tallybook 2026-11-21，用户 user-a：¥12.34，1,200 个 Token",
        ),
        (
            {"state": "draft"},
            "[Draft] Tallybook 2026-11-21: ¥12.34, 1,200 tokens",
            "【草稿】Tallybook 2026-11-21：¥12.34，1,200 个 Token",
        ),
        (
            {"early": True},
            "[Closed early] Tallybook 2026-11-21: ¥12.34, 1,200 tokens",
            "【提前结账】Tallybook 2026-11-21：¥12.34，1,200 个 Token",
        ),
    ],
)
def test_the_subject_marks_what_is_not_the_whole_closed_day(
    changes: dict[str, Any], english: str, chinese: str
) -> None:
    assert subject(a_report(**changes), ENGLISH) == english
    assert subject(a_report(**changes), CHINESE) == chinese


def test_the_subject_never_passes_unrated_tokens_off_as_free() -> None:
    unrated = a_report(some(minor=None, unrated_tokens=1200))
    assert subject(unrated, ENGLISH) == "Tallybook 2026-11-21: 1,200 tokens, 1,200 tokens unrated"


def test_the_subject_of_a_day_without_usage_says_so() -> None:
    assert subject(an_empty_report(), ENGLISH) == "Tallybook 2026-11-21: no usage"
    assert subject(an_empty_report(), CHINESE) == "Tallybook 2026-11-21：没有用量"
    corrected = an_empty_report(total=some(0, 250, requests=0))
    assert subject(corrected, ENGLISH) == "Tallybook 2026-11-21: ¥2.50, no usage"


def test_the_paragraphs_say_what_was_used_what_changed_and_why() -> None:
    assert paragraphs(UP, ENGLISH) == [
        "On Saturday, 21 November 2026, 1 user of 1 project made 12 requests and used 1,200 tokens "
        "(1,000 prompt, of which 200 cached; 200 completion). The bill comes to ¥24.31. "
        "Against the day before, the bill rose by ¥2.66 (+12.3%) and token usage rose by 89 (+8.0%).",
        "The main driver is project search: +¥1.90, 71.4% of the change; it had more requests "
        "(requests 5 → 7, tokens a request 100.0 → 92.9).",
    ]
    assert paragraphs(UP, CHINESE) == [
        "2026年11月21日（星期六），1 个项目的 1 位用户共发起 12 次请求，使用 1,200 个 Token"
        "（输入 1,000，其中命中缓存 200；输出 200），账单金额 ¥24.31。"
        "与前一日相比，账单金额增加 ¥2.66（+12.3%），Token 用量增加 89（+8.0%）。",
        "变化主要来自项目 search：+¥1.90，占全部变化的 71.4%；请求次数增加"
        "（请求 5 → 7 次，平均每次 100.0 → 92.9 个 Token）。",
    ]


def test_a_driver_that_outweighs_the_rest_is_told_with_the_rest() -> None:
    driver = driven("gone", Change(900, 0), Change(1000, 400))
    [_, said] = paragraphs(a_report(before=some(), driver=driver), ENGLISH)
    assert said == (
        "The main driver is user user-a: -900 tokens, while all others together changed by +300 tokens; "
        "it had no usage on this day."
    )


@pytest.mark.parametrize(
    ("before", "said"),
    [
        (some(1200, 1234), "the bill stayed the same and token usage stayed the same"),
        (some(2400, 2468), "the bill fell by ¥12.34 (-50.0%) and token usage fell by 1,200 (-50.0%)"),
        (some(600, None), "day before, token usage rose by 600 (+100.0%)."),
        (some(600, 0), "the bill rose by ¥12.34 and token usage rose by 600 (+100.0%)"),
        (some(600, 1234, currency="USD"), "day before, token usage rose by 600 (+100.0%)."),
    ],
)
def test_only_what_can_be_compared_is_compared(before: Totals, said: str) -> None:
    assert said in paragraphs(a_report(before=before), ENGLISH)[0]


def test_the_first_day_says_that_there_is_nothing_to_compare() -> None:
    assert paragraphs(a_report(), ENGLISH)[0].endswith(
        "There was no usage on the day before to compare with."
    )
    assert paragraphs(a_report(), CHINESE)[0].endswith("前一日没有用量，无法比较。")


def test_a_day_of_corrections_only_says_what_the_bill_is_for() -> None:
    report = an_empty_report(
        total=Totals(amount_minor=13, corrections_minor=13, currency="CNY"),
        corrections=(Correction(DAY - timedelta(days=1), "user-a", "search", 120, 0, 13),),
    )
    said = paragraphs(report, ENGLISH)[0]
    assert "21 November 2026. The bill comes to ¥0.13, for corrections of earlier days." in said
    unrated = an_empty_report(corrections=(Correction(BEFORE, "user-a", "search", 120, 120, None),))
    said = paragraphs(unrated, ENGLISH)[0]
    assert "The bill holds corrections of earlier days, none of which has an amount yet." in said


@pytest.mark.parametrize(
    ("changes", "kind", "english", "chinese"),
    [
        ({"state": "draft"}, "warning", "This is a draft", "草稿"),
        ({"state": "unbilled"}, "warning", "not rated yet", "尚未计价"),
        (
            {"early": True, "closed_at": datetime(2026, 11, 21, 18, 30, tzinfo=ZONE)},
            "warning",
            "Closed early, at 2026-11-21 18:30 (Asia/Shanghai).",
            "已于 2026-11-21 18:30（Asia/Shanghai）提前结账",
        ),
        ({"set_aside_events": 1234}, "warning", "on no bill: 1,234.", "有 1,234 行不是有效的用量事件"),
        (
            {"open_days": tuple(OpenDay(DAY - timedelta(days=n), 1000 + n) for n in range(1, 8))},
            "warning",
            "2026-11-20 (1,001 tokens), 2026-11-19 (1,002 tokens), 2026-11-18 (1,003 tokens), "
            "2026-11-17 (1,004 tokens), 2026-11-16 (1,005 tokens), and 2 more.",
            "2026-11-16 (1,005 个 Token)、另有 2 项。",
        ),
        (
            {
                "total": some(corrections_minor=-250),
                "corrections": (Correction(DAY - timedelta(days=1), "user-a", "search", -9, 0, -250),),
            },
            "note",
            "includes -¥2.50 of corrections",
            "更正 -¥2.50",
        ),
        (
            {"corrections": (Correction(DAY - timedelta(days=1), "user-a", "search", 120, 120, None),)},
            "note",
            "Corrections of earlier days, listed below, have no amount yet.",
            "对以往日期的更正尚无金额",
        ),
        (
            {
                "total": some(unrated_tokens=700),
                "models": (Part(("new-model", "2"), some(700, None, unrated_tokens=700)),),
            },
            "warning",
            "700 tokens without a price, not in the amount: new-model 2 (700).",
            "700 个 Token 没有定价，未计入金额：new-model 2 (700)。",
        ),
    ],
)
def test_what_the_reader_must_know_is_said(
    changes: dict[str, Any], kind: str, english: str, chinese: str
) -> None:
    [in_english], [in_chinese] = (notices(a_report(**changes), told) for told in (ENGLISH, CHINESE))
    assert in_english.kind == in_chinese.kind == kind
    assert english in in_english.text
    assert chinese in in_chinese.text


def test_a_closed_day_in_order_needs_no_notice() -> None:
    assert notices(a_report(), ENGLISH) == []


def test_names_from_outside_cannot_break_a_line_or_turn_it_around() -> None:
    evil = "a\r\nBcc: x@example.com\u202egnp.exe\x00"
    driver = driven("new", Change(0, 5), Change(0, 5), name=evil)
    part = Part((evil, "1"), some(unrated_tokens=7))
    report = a_report(user=evil, before=some(), driver=driver, models=(part,))
    texts = [subject(report, ENGLISH), *paragraphs(report, ENGLISH)]
    texts += [notice.text for notice in notices(report, ENGLISH) if isinstance(notice, Notice)]
    for text in texts:
        assert text.isprintable()
        assert "a��Bcc" in text


@pytest.mark.parametrize("cause", sorted(ENGLISH.because))
def test_every_cause_is_told_in_both_languages(cause: str) -> None:
    assert ENGLISH.because.keys() == CHINESE.because.keys()
    assert ENGLISH.because[cause]
    assert CHINESE.because[cause]


def test_both_languages_fill_in_the_same_facts() -> None:
    def facts(template: object) -> set[str]:
        texts = template if isinstance(template, tuple) else (template,)
        return {name for text in texts for _, name, _, _ in string.Formatter().parse(str(text)) if name}

    for field in dataclasses.fields(Words):
        if field.type == "str":
            english, chinese = (getattr(told, field.name) for told in (ENGLISH, CHINESE))
            assert facts(english) == facts(chinese), field.name


def test_chinese_has_no_english_left_but_names() -> None:
    allowed = {"Tallybook", "Token"}
    for field in dataclasses.fields(Words):
        text = getattr(CHINESE, field.name)
        if field.type == "str" and field.name not in ("language", "html_language"):
            words_left = set(re.findall(r"[A-Za-z]{2,}", re.sub(r"\{\w+\}", "", text)))
            assert words_left <= allowed, field.name


@pytest.mark.parametrize(
    ("value", "expected"),
    [("12.345", "+12.3%"), ("-0.04", "-0.0%"), ("0", "0.0%"), ("1234.55", "+1,234.6%"), ("-100", "-100.0%")],
)
def test_a_change_in_percent_has_a_sign_and_one_decimal(value: str, expected: str) -> None:
    assert percent(Decimal(value), sign=True) == expected


def test_numbers_are_written_for_people() -> None:
    assert number(1248900) == "1,248,900"
    assert (signed(1200), signed(-35), signed(0)) == ("+1,200", "-35", "0")
    assert (signed_amount(266, "CNY"), signed_amount(-7, "CNY")) == ("+¥2.66", "-¥0.07")
    assert (average(Decimal("143.65")), average(None)) == ("143.7", "–")
    assert ENGLISH.count(ENGLISH.requests, 1) == "1 request"
    assert ENGLISH.count(ENGLISH.tokens, -1, sign=True) == "-1 token"


@given(st.text())
def test_whatever_is_shown_stays_in_its_line(text: str) -> None:
    assert len(shown(text)) == len(text)
    assert len(f"[{shown(text)}]".splitlines()) == 1
