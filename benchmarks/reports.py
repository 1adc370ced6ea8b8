"""A large day's mail, from its trigger to the outbox; each chart; mails of their own."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

from benchmarks.closing import fill, peak_megabytes
from benchmarks.ledger import ZONE, ZONE_NAME, postgres
from benchmarks.model_server import Row, row
from billing import daily
from billing.ledger import open_ledger, reading
from billing.mail.bill_csv import read_lines
from billing.mail.bill_pdf import bill_pdf
from billing.reports.charts import draw_charts, drawn
from billing.reports.day import day_report
from billing.settings import BillingSettings

EVENTS = int(os.environ.get("TALLYBOOK_BENCH_EVENTS", "1000000"))
USERS = EVENTS // 100
MAILS = min(int(os.environ.get("TALLYBOOK_BENCH_MAILS", "1000")), USERS)  # 10000 is the aim's number
Done = TypeVar("Done")
BEFORE, DAY = date(2026, 11, 19), date(2026, 11, 20)


def rows(_models_dir: Path) -> Iterator[Row]:
    """Each step of the day, its charts one by one, and personal mails of some of its users."""
    with tempfile.TemporaryDirectory() as folder, postgres() as url:
        ledger = open_ledger(url, ZONE_NAME)
        fill(ledger, BEFORE, EVENTS // 2, USERS)
        fill(ledger, DAY, EVENTS, USERS)
        ledger.dispose()
        with get_context("spawn").Pool(1) as other:  # so that its memory is its own
            other.apply(_steps, (url, folder, BEFORE))
            took, megabytes = other.apply(_steps, (url, folder, DAY))
        name = f"{EVENTS:,} events of {USERS:,} users"
        yield row(f"from the trigger to the mail in the outbox, {name}", sum(took.values()), "s")
        for step, seconds in took.items():
            yield row(f"  {step}", seconds, "s")
        yield row("    memory of that process", megabytes, "MB")
        with get_context("spawn").Pool(1) as other:
            for chart, seconds in other.apply(_charts, (url,)).items():
                yield row(f"  {chart}", seconds * 1000, "ms")
        with get_context("spawn").Pool(2) as others:
            started = time.perf_counter()
            found = others.starmap(_personal, [(url, folder, shard) for shard in range(2)])
            seconds = time.perf_counter() - started
        count = sum(new for new, _ in found)
        yield row(f"{count:,} mails of their own, by two processes", seconds, "s")
        yield row("    of them", count / seconds, "a second")
        yield row("    memory of one of them", max(peak for _, peak in found), "MB")


def _settings(url: str, folder: str) -> BillingSettings:
    place = Path(folder)
    subscriptions = place / "subscriptions.toml"
    if not subscriptions.exists():
        subscriptions.write_text(
            "".join(
                f'[[subscriptions]]\nuser = "user-{n}"\nto = ["u{n}@example.com"]\n' for n in range(MAILS)
            )
        )
    return BillingSettings(
        ledger_url=url, journal_dir=place / "journal", reports_dir=place / "reports",
        outbox_dir=place / "outbox", subscriptions_file=subscriptions, smtp_url=None,
        prices_file=Path("prices.toml"), time_zone=ZONE_NAME,
    )  # fmt: skip


def _steps(url: str, folder: str, day: date) -> tuple[dict[str, float], float]:
    """Seconds of each task of the DAG but the mails of their own, and the most memory, in MB."""
    settings = _settings(url, folder)
    steps: dict[str, Callable[[], object]] = {
        "ingest": lambda: daily.ingest(settings),
        "rate": lambda: daily.rate(settings, day),
        "close": lambda: daily.close(settings, day),
        "report": lambda: daily.report(settings, day),
        "mail": lambda: daily.mail(settings, day),
    }
    took = {}
    for name, step in steps.items():
        started = time.perf_counter()
        step()
        took[name] = time.perf_counter() - started
    return took, peak_megabytes()


def _charts(url: str) -> dict[str, float]:
    """Seconds of each chart, and of reading the report and typesetting the PDF."""
    took: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Done]) -> Done:
        started = time.perf_counter()
        done = work()
        took[name] = time.perf_counter() - started
        return done

    with reading(open_ledger(url, ZONE_NAME)) as connection:
        report = timed("reading the report", lambda: day_report(connection, DAY, ZONE))
        lines = read_lines(connection, DAY)
    draw_charts(report, "zh")  # the font is read once
    for name, draw in drawn(report, "zh").items():
        timed(f"chart {name}", draw)
    timed("the bill as PDF", lambda: bill_pdf(report, lines, "zh"))
    return took


def _personal(url: str, folder: str, shard: int) -> tuple[int, float]:
    """How many mails one of two shards has composed, and the most memory, in MB."""
    new, _ = daily.personal(_settings(url, folder), DAY, shard, 2)
    return new, peak_megabytes()


if __name__ == "__main__":
    from benchmarks.__main__ import line

    for measured in rows(Path("models")):
        print(line(measured), flush=True)  # noqa: T201 -- a report
