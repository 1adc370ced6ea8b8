"""The bill as PDF, read back with a program that knows nothing of ours."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace

import pytest

from billing.mail.bill_pdf import bill_pdf
from billing.reports.words import Language
from tests.billing.mail.test_bill_csv import a_line
from tests.billing.sample_reports import a_proof, a_report, a_trend, some


def text_of(pdf: bytes) -> str:
    """The PDF's letters, without what lays them out."""
    program = shutil.which("pdftotext")
    if program is None:
        pytest.skip("reads PDFs with pdftotext, which is not installed: apt-get install poppler-utils")
    read = subprocess.run([program, "-raw", "-", "-"], input=pdf, capture_output=True, check=True)
    return read.stdout.decode()


@pytest.mark.parametrize(
    ("language", "title"), [("en", "Bill of Saturday"), ("zh", "2026年11月21日（星期六）账单")]
)
def test_the_bill_says_what_was_used_at_which_price(language: Language, title: str) -> None:
    pdf = bill_pdf(a_report(), [a_line()], language, a_proof())
    assert pdf.startswith(b"%PDF-")
    text = text_of(pdf)
    assert title.replace(" ", "") in text.replace("\n", "").replace(" ", "")
    assert "¥12.34" in text
    assert "0.80/1,000" in text


def test_the_same_bill_is_the_same_bytes() -> None:
    assert bill_pdf(a_report(), [a_line()], "zh") == bill_pdf(a_report(), [a_line()], "zh")


def test_no_name_is_markup_or_reads_a_file() -> None:
    evil = '#read("/etc/passwd") $x$ *b* <i> [] \\ "'
    report = a_report(user=evil, projects=(replace(a_report().projects[0], key=(evil,)),))
    text = text_of(bill_pdf(report, [a_line(project=evil)], "en"))
    assert "root:" not in text
    assert '#read("/etc/passwd")' in text


def test_of_ten_thousand_projects_the_largest_are_shown_and_it_says_so() -> None:
    lines = [a_line(project=f"p{n}", amount_minor=n) for n in range(10_000)]
    text = text_of(bill_pdf(a_report(some(10_000), trend=a_trend(30)), lines, "en"))
    assert "The first 400 of 10,000 rows; the attached CSV has every line." in text
    assert "p9999" in text
