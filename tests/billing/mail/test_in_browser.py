"""The mails of a normal, a surge and an empty day in a real Chromium: nothing hangs over, all is legible."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, Dialog

from billing.mail.day import compose
from billing.totals import Part
from tests.billing.sample_reports import a_report, some
from tests.browser import chromium
from tests.tools.preview_mail import LANGUAGES, RECIPIENTS, SENDER, main
from tests.tools.preview_mail import page as as_page

DAYS = ("normal", "surge", "empty", "personal", "statement")
# Of every text that is seen: its colour, that of what lies behind it, and how large it is.
TEXTS = """() => {
    const seen = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const text = walker.currentNode.textContent.trim();
        if (!text || text === "\\u00a0") continue;
        const element = walker.currentNode.parentElement;
        let behind = element;
        while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
        seen.push([text, getComputedStyle(element).color, getComputedStyle(behind).backgroundColor]);
    }
    return seen;
}"""
IMAGES = "() => [...document.images].map(image => [image.naturalWidth, image.alt, image.clientWidth])"
OVERHANG = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def pages(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mails")
    main(folder, DAYS)
    return folder


def luminance(colour: str) -> float:
    """Of an opaque rgb(...), as WCAG 2 defines it."""
    parts = [float(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted([luminance(one), luminance(other)], reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("day", DAYS)
def test_a_mail_fits_its_window_shows_its_pictures_and_can_be_read(
    browser: Browser, pages: Path, day: str, language: str, scheme: Literal["light", "dark"]
) -> None:
    for width in (700, 390):  # a window, and a telephone
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.goto((pages / f"{day}-{language}.html").as_uri())
        assert page.evaluate(OVERHANG) <= 0, f"it is wider than {width} pixels"
        images: list[tuple[int, str, int]] = page.evaluate(IMAGES)
        assert all(natural == 1200 and alt and shown <= width for natural, alt, shown in images)
        assert bool(images) == (day not in ("personal", "statement"))
        texts: list[list[Any]] = page.evaluate(TEXTS)
        assert len(texts) > 5
        faint = [(text, contrast(ink, paper)) for text, ink, paper in texts if contrast(ink, paper) < 4.5]
        assert faint == []
        page.close()


def test_dark_mode_is_dark_but_for_the_pictures(browser: Browser, pages: Path) -> None:
    page = browser.new_page(color_scheme="dark")
    page.goto((pages / "normal-en.html").as_uri())
    papers = {paper for _, _, paper in page.evaluate(TEXTS)}
    assert all(luminance(paper) < 0.1 for paper in papers)
    page.close()


def test_names_from_outside_run_nothing_and_break_nothing(browser: Browser, tmp_path: Path) -> None:
    names = [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "\u202egnp.exe",
        "مرحبا 😀",
        "x" * 400,
    ]
    parts = tuple(Part((name,), some(1000 + n)) for n, name in enumerate(names))
    report = a_report(users=parts, projects=parts, departments=parts)
    message = compose(
        report, mail_id="x", language="en", sender=SENDER, recipients=RECIPIENTS, charts={}, bill=b""
    )  # fmt: skip
    (tmp_path / "mail.html").write_text(as_page(message), "utf-8")
    page = browser.new_page(viewport={"width": 390, "height": 900})
    dialogs: list[str] = []

    def note(dialog: Dialog) -> None:
        dialogs.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", note)
    page.goto((tmp_path / "mail.html").as_uri())
    assert dialogs == []
    assert page.evaluate("() => document.scripts.length + document.images.length") == 0
    assert page.evaluate(OVERHANG) <= 0
    page.close()
