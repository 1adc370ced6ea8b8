from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from billing.ingest import ingest
from billing.ledger import open_ledger
from tallybook.cli import main
from tests.billing.factories import DAY, NOON, ZONE, an_event, write_segment


@pytest.fixture
def ledger_in_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger of two hours of a day and a line from the future, that the commands find by themselves."""
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    monkeypatch.setenv("TALLYBOOK_LEDGER_URL", url)
    write_segment(tmp_path / "j", [an_event(), an_event(time=NOON - timedelta(hours=1))])
    write_segment(tmp_path / "j", [an_event(time=NOON + timedelta(days=400))])
    ledger = open_ledger(url, "Asia/Shanghai")
    ingest(ledger, tmp_path / "j", ZONE)
    ledger.dispose()


def run(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["events", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.usefixtures("ledger_in_environment")
def test_lines_that_were_set_aside_are_listed_with_their_reason_and_read_again() -> None:
    told = run("set-aside")
    assert "future_time" in told
    assert "is more than a day ahead" in told
    assert told.endswith("1 set aside.\n")
    assert run("retry") == "0 events stored, 0 were there already.\n"


@pytest.mark.usefixtures("ledger_in_environment")
def test_hours_are_made_anew_on_demand() -> None:
    assert run("rebuild", DAY.isoformat()) == f"{DAY}: 2 hourly aggregates made anew.\n"


@pytest.mark.usefixtures("ledger_in_environment")
def test_nothing_is_dropped_before_its_bill_is_closed() -> None:
    assert run("drop", "--before", "2030-01-01") == ""
