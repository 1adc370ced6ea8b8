"""How far the ledger is behind, held against the real ledger: these tests may know billing."""

from datetime import datetime, timedelta, timezone
from pathlib import Path

from billing.ingest import ingest
from billing.ledger import open_ledger
from serving.observability.journal_lag import JournalLag
from tests.apis import running_app
from tests.billing.factories import ZONE, an_event, write_segment

BYTES, SECONDS = "tallybook_journal_unread_bytes", "tallybook_journal_unread_seconds"


def looked(lag: JournalLag) -> tuple[int, float] | None:
    lag.look()
    return lag.told()


def test_what_ingest_has_not_read_is_told_with_its_age(tmp_path: Path) -> None:
    journal, url = tmp_path / "journal", f"sqlite:///{tmp_path / 'ledger.db'}"
    hours_ago = [datetime.now(timezone.utc) - timedelta(hours=hours) for hours in (2, 1)]
    lag = JournalLag(url, journal)
    try:
        assert looked(lag) == (0, 0.0)
        segment = write_segment(journal, [an_event(time=time) for time in hours_ago])
        waiting = looked(lag)  # there is no ledger yet: all of it waits
        assert waiting is not None
        assert waiting[0] == (read := segment.stat().st_size)
        assert waiting[1] >= 7200
        ledger = open_ledger(url, "Asia/Shanghai")
        ingest(ledger, journal, ZONE)
        assert looked(lag) == (0, 0.0)
        write_segment(journal, [an_event(time=hours_ago[1])])  # behind the others, in the same segment
        waiting = looked(lag)
        assert waiting is not None
        assert waiting[0] == segment.stat().st_size - read > 0
        assert 3600 <= waiting[1] < 7200
        ledger.dispose()
    finally:
        lag.close()


def test_an_event_of_a_clock_that_was_wrong_waits_since_its_segment_changed(tmp_path: Path) -> None:
    write_segment(tmp_path / "journal", [an_event(time=datetime(1970, 1, 1, tzinfo=timezone.utc))])
    lag = JournalLag(f"sqlite:///{tmp_path / 'ledger.db'}", tmp_path / "journal")
    try:
        waiting = looked(lag)
        assert waiting is not None
        assert waiting[1] < 3600
    finally:
        lag.close()


def test_while_the_ledger_is_away_nothing_is_made_up(tmp_path: Path) -> None:
    lag = JournalLag(f"sqlite:///{tmp_path}", tmp_path)  # a folder is no database
    try:
        assert looked(lag) is None
    finally:
        lag.close()


def test_the_lag_is_a_metric(tmp_path: Path) -> None:
    with running_app(tmp_path) as api:
        api.analyze()
        api.services.journal_lag.look()
        samples = (line.rsplit(" ", 1) for line in api.client.get("/metrics").text.splitlines())
        told = {name: value for name, value in samples if name in (BYTES, SECONDS)}
        written = sum(file.stat().st_size for file in (tmp_path / "journal").glob("*.jsonl"))
    assert float(told[BYTES]) == written > 300
    assert float(told[SECONDS]) >= 0
