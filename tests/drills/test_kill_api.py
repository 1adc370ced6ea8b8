"""The drill: `TALLYBOOK_DRILL_KILLS=20 pytest tests/drills/test_kill_api.py -s` is the full one."""

import os
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa

from billing.ingest import ingest
from billing.ledger import open_ledger, reading
from billing.tables import usage_events, usage_hours
from tests.drills.killing import kill_under_load

KILLS = int(os.environ.get("TALLYBOOK_DRILL_KILLS", "3"))


def test_every_request_that_a_client_saw_answered_is_in_the_ledger_once(
    tmp_path: Path, models_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drill = kill_under_load(tmp_path, models_dir, KILLS)
    ledger = open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}", "Asia/Shanghai")
    result = ingest(ledger, drill.journal_dir, ZoneInfo("Asia/Shanghai"))
    again = ingest(ledger, drill.journal_dir, ZoneInfo("Asia/Shanghai"))
    columns = usage_events.c
    with reading(ledger) as connection:
        query = sa.select(columns.id, columns.prompt_tokens, columns.completion_tokens)
        recorded = {row[0]: (row[1], row[2]) for row in connection.execute(query)}
        counted = connection.scalar(sa.select(sa.func.sum(usage_hours.c.requests)))
    ledger.dispose()
    with capsys.disabled():
        print(  # noqa: T201  a report
            f"\n  {KILLS} kills: {len(drill.answered)} answered, {len(recorded)} in the ledger, set aside "
            f"{result.set_aside or 'none'}, {drill.unanswered} connections broken, "
            f"refused {drill.refused or 'none'}"
        )
    assert result.duplicates == again.read == 0
    assert counted == len(recorded) == result.stored
    assert drill.answered.keys() <= recorded.keys(), "an answered request is not in the ledger"
    for request_id, usage in drill.answered.items():
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == recorded[request_id]
    # What was recorded and not seen answered broke off with its connection: one request a client and kill.
    assert len(recorded) - len(drill.answered) <= drill.unanswered
