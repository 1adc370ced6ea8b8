from __future__ import annotations

import csv
import io
import re
from datetime import datetime, timedelta, timezone
from email import message_from_bytes, policy
from email.message import EmailMessage
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import Engine

from billing.closure import prove
from billing.errors import MailError
from billing.ledger import reading
from billing.mail.bill_csv import read_lines, write_bill
from billing.mail.day import compose
from billing.reports.charts import draw_charts
from billing.reports.day import Correction, DayReport
from billing.reports.words import Language
from billing.totals import Part
from tests.billing.days import at, bring, close, report
from tests.billing.factories import AFTER, DAY, an_event
from tests.billing.sample_reports import a_proof, a_report, a_trend, an_empty_report, some

PNG = b"\x89PNG\r\n\x1a\n not really"


def composed(day: DayReport | None = None, **changes: Any) -> EmailMessage:
    values: dict[str, Any] = {
        "mail_id": "2026-11-21",
        "language": "en",
        "sender": "Tallybook <tallybook@example.com>",
        "recipients": ["finance@example.com"],
        "charts": {"hours": PNG, "users": PNG},
        "bill": b"\xef\xbb\xbfday\r\n2026-11-21\r\n",
    }
    return compose(day or a_report(), **(values | changes))


def read_back(message: EmailMessage) -> EmailMessage:
    """The mail as its recipient's program parses it."""
    parsed = message_from_bytes(message.as_bytes(), policy=policy.default)
    assert isinstance(parsed, EmailMessage)
    assert all(not part.defects for part in parsed.walk())
    return parsed


def part(message: EmailMessage, content_type: str) -> Any:
    [found] = [p for p in read_back(message).walk() if p.get_content_type() == content_type]
    return found.get_content()


class _Page(HTMLParser):
    """Collects tags and text, as a browser would see them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember the tag, and where a picture comes from."""
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "background")]

    def handle_data(self, data: str) -> None:
        """Collect text."""
        self.text += data


def test_a_mail_has_text_html_with_inline_charts_and_the_bill() -> None:
    message = read_back(composed())
    assert [part.get_content_type() for part in message.walk()] == [
        "multipart/mixed",
        "multipart/alternative",
        "text/plain",
        "multipart/related",
        "text/html",
        "image/png",
        "image/png",
        "text/csv",
    ]
    images = [part for part in message.walk() if part.get_content_type() == "image/png"]
    assert [image.get_content() for image in images] == [PNG, PNG]
    assert {image.get_content_disposition() for image in images} == {"inline"}
    html = _Page(part(message, "text/html"))
    assert html.sources == [f"cid:{image['Content-ID'].strip('<>')}" for image in images]
    [bill] = message.iter_attachments()
    assert (bill.get_filename(), bill.get_content_charset()) == ("bill-2026-11-21.csv", "utf-8")
    assert bill.get_payload(decode=True) == b"\xef\xbb\xbfday\r\n2026-11-21\r\n"


def test_the_headers_name_sender_recipients_day_and_moment() -> None:
    message = read_back(
        composed(recipients=["财务部 <finance@example.com>", "audit@example.com"], language="zh")
    )
    assert message["Subject"] == "Tallybook 2026-11-21：¥12.34，1,200 个 Token"
    assert message["From"] == "Tallybook <tallybook@example.com>"
    assert [(a.display_name, a.addr_spec) for a in message["To"].addresses] == [
        ("财务部", "finance@example.com"),
        ("", "audit@example.com"),
    ]
    assert message["Date"].datetime == AFTER
    assert message["Content-Language"] == "zh-CN"
    assert message["Auto-Submitted"] == "auto-generated"


def test_the_date_is_the_closing_unless_another_is_given() -> None:
    moment = datetime(2026, 11, 25, 3, 4, 5, tzinfo=timezone.utc)
    assert read_back(composed(date=moment))["Date"].datetime == moment
    draft = read_back(composed(a_report(state="draft", closed_at=None)))
    assert abs(draft["Date"].datetime - datetime.now(timezone.utc)) < timedelta(minutes=5)


def test_the_message_id_and_the_bytes_follow_from_the_mail_id() -> None:
    first, again, other = composed(), composed(), composed(mail_id="2026-11-22")
    assert first.as_bytes() == again.as_bytes()
    assert first["Message-ID"] == again["Message-ID"] != other["Message-ID"]
    assert re.fullmatch(r"<[0-9a-f]{32}@example\.com>", first["Message-ID"])


def test_every_line_is_short_ascii_that_any_relay_passes_on() -> None:
    message = composed(a_report(projects=(Part(("客" * 500,), some()),)), language="zh")
    for line in message.as_bytes().split(b"\r\n"):
        assert len(line) <= 998
        assert line.isascii()
        assert b"\n" not in line


@pytest.mark.parametrize("language", ["en", "zh"])
def test_both_bodies_tell_the_same_numbers(language: Language) -> None:
    day = a_report(
        some(1_248_900, 2_431, requests=345),
        before=some(1_111_111, 2_165, requests=300),
        corrections=(Correction(DAY - timedelta(days=1), "user-c", "archive", 4321, 0, 77),),
    )
    message = composed(day, language=language, proof=a_proof(event_tokens=987_654, corrected_days=(DAY,)))
    html, text = _Page(part(message, "text/html")).text, part(message, "text/plain")
    facts = ("1,248,900", "¥24.31", "345", "+12.3%", "user-a", "search", "retail", "review-sentiment 1",
             "+4,321", "+¥0.77", "archive", "987,654", "bill-2026-11-21.csv", "Asia/Shanghai")  # fmt: skip
    for fact in facts:
        assert fact in html, fact
        assert fact in text, fact


def test_a_draft_says_so_in_subject_bodies_and_file_name() -> None:
    message = composed(a_report(state="draft", closed_at=None, user="user:a"))
    assert message["Subject"].startswith("[Draft] ")
    assert "This is a draft" in part(message, "text/html")
    assert "This is a draft" in part(message, "text/plain")
    [bill] = read_back(message).iter_attachments()
    assert bill.get_filename() == "bill-2026-11-21-user_a-draft.csv"


def test_no_proof_is_claimed_that_was_not_given() -> None:
    assert "Proof" not in part(composed(), "text/plain")
    assert "Proof of closure" in part(composed(proof=a_proof()), "text/plain")


def test_an_empty_day_is_a_short_mail_without_charts_or_tables() -> None:
    message = composed(an_empty_report(), charts={})
    assert "There was no usage" in part(message, "text/plain")
    assert "<th" not in part(message, "text/html")
    assert "multipart/related" not in [p.get_content_type() for p in read_back(message).walk()]


def test_of_many_parts_ten_are_named_and_the_others_summed() -> None:
    users = tuple(Part((f"user-{n:02}",), some(100, 10, requests=1)) for n in range(25))
    corrections = tuple(Correction(DAY, f"late-{n:02}", "p", 1, 0, n) for n in range(13))
    text = part(composed(a_report(users=users, corrections=corrections)), "text/plain")
    assert [line.split() for line in text.splitlines() if "others" in line] == [
        ["15", "others", "15", "1,500", "125.0%", "¥1.50"],
        ["3", "others", "+3", "+¥0.03"],
    ]


def test_one_more_than_ten_is_named_in_the_row_that_others_would_take() -> None:
    users = tuple(Part((f"user-{n:02}",), some(100, 10, requests=1)) for n in range(11))
    text = part(composed(a_report(users=users)), "text/plain")
    assert "user-10" in text
    assert " other" not in text


def test_a_day_of_ten_thousand_projects_is_a_mail_of_ordinary_size() -> None:
    projects = tuple(Part((f"project-{n:05}",), some(100, 10, requests=1)) for n in range(10_000))
    message = composed(a_report(projects=projects))
    assert "9,990 others" in part(message, "text/plain")
    assert len(part(message, "text/html")) < 100_000  # from where on some readers cut a mail


_NASTY = [
    "</td></table><script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "a\r\nBcc: everyone@example.com\r\n\r\n<b>body</b>",
    "{{ 7 * 7 }}{% raw %}",
    "🧾 🙂 名字 مرحبا \u202etxt.exe",
    "--=boundary",
    "&amp; &lt;",
    "=?utf-8?q?=0A?=",
]


@pytest.mark.parametrize("name", _NASTY)
def test_no_name_from_outside_forges_a_header_a_tag_or_a_line(name: str) -> None:
    one = (Part((name,), some(unrated_tokens=3)),)
    correction = Correction(DAY, name, name, 1, 0, 1)
    day = a_report(user=name, users=one, projects=one, departments=one, models=one, corrections=(correction,))
    message = read_back(composed(day))
    assert message["Bcc"] is None
    plain = read_back(composed(a_report(user="x", users=one, corrections=(correction,))))
    assert message.keys() == plain.keys()
    page, harmless = _Page(part(message, "text/html")), _Page(part(composed(), "text/html"))
    assert "script" not in page.tags
    assert page.tags.count("img") == harmless.tags.count("img")
    assert all(source.startswith("cid:") for source in page.sources)
    assert "\u202e" not in page.text + part(message, "text/plain")
    assert not [line for line in part(message, "text/plain").splitlines() if line.startswith("Bcc")]


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=60), st.text(max_size=60))
@example("名 =名= á", "a" * 60)  # blanks where a line of the subject ends
@example("a" * 35, "b")
def test_whatever_names_a_ledger_holds_a_mail_can_be_read_back(user: str, model: str) -> None:
    one = (Part((user, model), some()),)
    message = composed(a_report(user=user, models=one, projects=one))
    assert read_back(message)["Subject"] == message["Subject"]
    assert part(message, "text/csv")


@pytest.mark.parametrize(
    "address",
    [
        "", "finance", "finance@", "@example.com", "a@example.com, b@example.com", "a b@example.com",
        "a@example.com\r\nBcc: b@example.com", "a\x00@example.com", "财务@example.com", "a@例子.com",
        "group: a@example.com;", "=?utf-8?q?=0ABcc:_b=40example.com?= <a@example.com>", '"a b"@example.com',
    ],
)  # fmt: skip
def test_an_address_that_is_not_one_is_refused(address: str) -> None:
    for where in ({"sender": address}, {"recipients": [address]}):
        with pytest.raises(MailError) as error:
            composed(**where)
        assert error.value.code == "address_invalid"


def test_a_mail_to_nobody_is_refused() -> None:
    with pytest.raises(MailError) as error:
        composed(recipients=[])
    assert error.value.code == "no_recipient"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_closed_day_becomes_a_mail_whose_bill_sums_to_its_subject(
    ledger: Engine, language: Language
) -> None:
    bring(ledger, [an_event(time=at(DAY, n % 24), user=f"user-{n % 12}") for n in range(60)])
    close(ledger, DAY)
    with reading(ledger) as connection:
        bill, proof = write_bill(read_lines(connection, DAY)), prove(connection, DAY)
    day = report(ledger, DAY)
    message = composed(day, language=language, charts=draw_charts(day, language), bill=bill, proof=proof)
    amounts = [row["amount"] for row in csv.DictReader(io.StringIO(bill.decode("utf-8-sig")))]
    total = sum(int(amount.replace(".", "")) for amount in amounts)
    assert f"¥{total // 100}.{total % 100:02}" in message["Subject"]
    assert "7,200" in message["Subject"]
    assert part(message, "text/plain").count("7,200") > 4
    assert len(message.as_bytes()) < 300_000


def test_the_trend_is_in_the_mail_once_there_is_one() -> None:
    day = a_report(trend=a_trend(3))
    html = part(composed(day, charts=draw_charts(day, "en")), "text/html")
    assert "cid:trend." in html
