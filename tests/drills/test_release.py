"""The drill: `TALLYBOOK_DRILL_REQUESTS=500 pytest tests/drills/test_release.py -s` waits longer each time."""

import os
from collections import Counter
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa

from billing import acts
from billing.ingest import ingest
from billing.ledger import open_ledger, reading
from billing.tables import usage_events
from tests.drills.releasing import release_under_load

PER_SECOND = 100
PAUSE_REQUESTS = int(os.environ.get("TALLYBOOK_DRILL_REQUESTS", "60"))
ZONE = ZoneInfo("Asia/Shanghai")


def test_releases_under_load_lose_no_request_and_bill_each_version_rightly(
    tmp_path: Path, model_versions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drill = release_under_load(tmp_path, model_versions, PER_SECOND, PAUSE_REQUESTS)
    ledger = open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}", ZONE.key)
    ingest(ledger, drill.journal_dir, ZONE)
    columns = usage_events.c
    with reading(ledger) as connection:
        query = sa.select(
            columns.id,
            columns.model_version,
            columns.prompt_tokens,
            columns.completion_tokens,
            columns.model_label,
        )
        rows = connection.execute(query).all()
        chained = [(act.body["who"], act.body["kind"]) for act in acts.recent(connection, 20)]
    ledger.dispose()
    billed = {row[0]: tuple(row[1:4]) for row in rows}
    labels = Counter((row[1], row[4]) for row in rows)
    with capsys.disabled():
        print(  # noqa: T201  a report
            f"\n  {len(drill.answered)} requests in {drill.seconds:.0f} s over seven steps, "
            f"{len(drill.failed)} failed, by version {dict(drill.versions())}, by label {dict(labels)}"
        )
    assert drill.failed == []
    assert billed == drill.answered
    assert {"1", "2"} == set(drill.versions())
    steps = ["adopted", "staged", "canaried", "canaried", "promoted", "rolled_back"]
    steps += ["staged", "canaried", "rolled_back"]
    assert chained == [("drill", f"release.{step}") for step in reversed(steps)]
    assert labels.keys() == {("1", "stable"), ("2", "canary"), ("2", "stable")}
