"""The mail of a monthly statement: its figures, its parts, what is cut, and names that would be markup."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from datetime import datetime
from email.message import EmailMessage

import pytest
from sqlalchemy.engine import Connection

from billing.money import format_amount
from billing.reports.words import Language
from billing.statements.mail import compose_statement, statement_pdf
from billing.statements.statement import Part, Statement, Unrated, statement
from tests.billing.factories import ZONE
from tests.billing.generated_month import NOVEMBER

NOW = datetime(2026, 12, 5, 12, tzinfo=ZONE)


@pytest.fixture
def told(november: Connection) -> Statement:
    return statement(november, NOVEMBER, ZONE, None, NOW)


def mail(told: Statement, language: Language = "en") -> EmailMessage:
    return compose_statement(
        told, mail_id="monthly-2026-11", language=language, sender="a@example.com",
        recipients=["finance@example.com"], zone=ZONE, date=NOW,
    )  # fmt: skip


def part(message: EmailMessage, kind: str) -> str:
    (found,) = (each for each in message.walk() if each.get_content_type() == kind)
    return str(found.get_content())


@pytest.mark.parametrize("language", ["en", "zh"])
def test_subject_page_and_text_say_what_the_month_comes_to(told: Statement, language: Language) -> None:
    message = mail(told, language)
    amount = format_amount(told.amount_minor, str(told.currency))
    tokens = f"{sum(each.quantity_tokens for each in told.parts):,}"
    for where in (message["Subject"], part(message, "text/plain"), part(message, "text/html")):
        assert "2026-11" in where
        assert amount in where
        assert tokens in where


def test_the_attached_rows_sum_to_the_amount_of_the_subject(told: Statement) -> None:
    message = mail(told)
    attached = {each.get_filename(): each.get_content() for each in message.iter_attachments()}
    assert list(attached) == ["statement-2026-11.csv", "statement-2026-11.pdf"]
    text = attached["statement-2026-11.csv"].lstrip("\ufeff")
    amounts = [row["amount"] for row in csv.DictReader(io.StringIO(text)) if row["amount"]]
    assert round(100 * sum(map(float, amounts))) == told.amount_minor
    assert attached["statement-2026-11.pdf"].startswith(b"%PDF")


def test_corrections_are_a_table_of_their_own_where_there_are_some(told: Statement) -> None:
    assert told.corrections
    assert "Corrections" in part(mail(told), "text/plain")
    assert "Corrections" not in part(mail(replace(told, corrections=())), "text/plain")


def test_what_has_no_price_is_told_and_is_not_free(told: Statement) -> None:
    free = Unrated("retail", "search", "chat", "7", 1_000)
    two = replace(told, unrated=(free, free._replace(project="ads", tokens=250)))
    text = part(mail(two), "text/plain")
    assert "1,250 tokens without a price, not in the amount: chat 7 (1,250)." in text
    one = replace(told, unrated=(free._replace(tokens=1),))
    assert "1 token without a price, not in the amount: chat 7 (1)." in part(mail(one), "text/plain")
    single = mail(replace(told, parts=(Part("retail", "search", 1, 0, 0),)))
    assert single["Subject"].endswith(", 1 token")
    assert "without a price" not in part(mail(replace(told, unrated=())), "text/plain")
    parts = (Part("retail", "search", 1_250, 1_250, 0), Part("retail", "chat", 10, 0, 0))
    shown = {
        line.split()[1]: line.split()[-1]
        for line in part(mail(replace(told, parts=parts)), "text/plain").splitlines()
        if line.startswith("retail")
    }
    assert shown == {"search": "unrated", "chat": "¥0.00"}


@pytest.mark.parametrize(
    ("language", "said"),
    [
        ("en", "The bills of 2026-11 hold 1,250 tokens of 1 project, none of which has an amount yet."),
        ("zh", "2026-11 的账单共 1,250 个 Token，来自 1 个项目，均尚无金额。"),
    ],
)
def test_a_month_without_any_amount_is_told_as_such(told: Statement, language: Language, said: str) -> None:
    unpriced = replace(told, currency=None, parts=(Part("retail", "search", 1_250, 1_250, 0),))
    assert said in " ".join(part(mail(unpriced, language), "text/plain").split())


@pytest.mark.parametrize(("language", "heading"), [("en", "Month of usage"), ("zh", "使用月份")])
def test_a_statement_is_by_months_not_by_days(told: Statement, language: Language, heading: str) -> None:
    text = part(mail(told, language), "text/plain")
    assert heading in text
    assert "Day of usage" not in text


def test_of_many_projects_twenty_are_shown_and_the_rest_counted(told: Statement) -> None:
    parts = tuple(Part("retail", f"project-{n:03}", 1, 100, 10) for n in range(10_000))
    text = part(mail(replace(told, parts=parts)), "text/plain")
    assert "project-019" in text
    assert "project-020" not in text
    assert "9,980 more" in text
    assert len(text) < 20_000


def test_a_provisional_and_a_simulated_statement_say_so(told: Statement) -> None:
    simulated = mail(replace(told, simulated=True))
    assert simulated["Subject"].startswith("[Simulated] ")
    assert "nobody asked for this usage" in part(simulated, "text/plain")
    assert "[Closed]" in part(mail(told), "text/plain")
    assert "[Closed]" not in part(mail(replace(told, open_days=(NOVEMBER,))), "text/plain")


def test_names_are_text_in_the_page_and_cannot_end_a_line(told: Statement) -> None:
    evil = Part("<script>alert(1)</script>", "a\r\nBcc: all@example.com\u202e", 1, 100, 10)
    message = mail(replace(told, parts=(evil,)))
    assert "<script" not in part(message, "text/html")
    assert "\nBcc" not in message.as_string()
    assert "\u202e" not in part(message, "text/html")
    assert statement_pdf(replace(told, parts=(evil,)), "zh").startswith(b"%PDF")


def test_the_same_statement_makes_the_same_pdf(told: Statement) -> None:
    assert statement_pdf(told, "zh") == statement_pdf(told, "zh")
