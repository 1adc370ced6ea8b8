"""A real Chromium for tests: Debian's, driven by Playwright, which brings none of its own here."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

# As root in a container without a GPU, and without asking Google's hosts for anything.
_OPTIONS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a screen; the test is skipped where none is installed."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("needs a browser: apt-get install chromium fonts-wqy-microhei")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=_OPTIONS)
        yield browser
        browser.close()
