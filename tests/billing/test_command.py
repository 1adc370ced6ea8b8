"""What any command of billing says when what it is given is wrong: one line, and no traceback."""

from pathlib import Path

import click
import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from billing.command import A_DAY, A_MONTH, told_errors
from billing.ingest import ingest
from billing.ledger import open_ledger
from tallybook.cli import main
from tests.billing.conftest import TIME_ZONE
from tests.billing.factories import ZONE, an_event, write_segment


@pytest.mark.parametrize(
    "words",
    [
        ["rate", "9999-12-31"],
        ["close", "0001-01-01"],
        ["report", "0202-11-26"],
        ["statement", "9999-12"],
        ["budgets", "0001-01"],
        ["costs", "report", "0001-01-01"],
        ["costs", "report", "9999-12"],
        ["events", "drop", "--before", "9999-12-31"],
        ["export", "focus", "--from", "0001-01-01", "--to", "2026-01-01", "--out", "x.csv"],
        ["forecast", "--until", "0001-01-01"],
        ["alerts", "ack", str(2**63), "--by", "me"],
    ],
    ids=" ".join,
)
def test_a_day_that_no_calendar_has_room_around_is_refused(words: list[str]) -> None:
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2, done.output
    assert "Invalid value" in done.stderr


@pytest.mark.parametrize("text", ["1970-01-01", "9998-12-31"])
def test_the_first_and_the_last_day_that_can_be_billed_are_taken(text: str) -> None:
    assert str(A_DAY.convert(text, None, None).date()) == text
    assert str(A_MONTH.convert(text[:7], None, None).date()) == f"{text[:7]}-01"


def test_a_file_that_can_not_be_written_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(click.ClickException, match=r"file_unusable: .*Not a directory"), told_errors():
        (tmp_path / "file" / "report.csv").write_text("")


def test_a_full_disk_under_the_ledger_is_told_in_a_line(sqlite_url: str, tmp_path: Path) -> None:
    ledger = open_ledger(sqlite_url, TIME_ZONE)
    sa.event.listen(
        ledger, "begin", lambda connection: connection.exec_driver_sql("PRAGMA max_page_count = 1")
    )
    write_segment(tmp_path, [an_event(prompt_prefix="x" * 100_000)])
    with pytest.raises(click.ClickException, match=r"ledger_unavailable: .*disk is full"), told_errors():
        ingest(ledger, tmp_path, ZONE)
    ledger.dispose()


def test_a_database_whose_driver_is_not_installed_is_told_in_a_line() -> None:
    done = CliRunner().invoke(main, ["rate", "2026-11-21"], env={"TALLYBOOK_LEDGER_URL": "mysql://host/name"})
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: ledger_unavailable: can't open the ledger mysql://host/name")
