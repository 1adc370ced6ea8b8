"""The drill: `TALLYBOOK_DRILL_KILLS=20 pytest tests/drills/test_kill_api.py -s` is the full one."""

import os
from pathlib import Path

import pytest

from tests.apis import events_in
from tests.drills.killing import kill_under_load

KILLS = int(os.environ.get("TALLYBOOK_DRILL_KILLS", "3"))


def test_every_request_that_a_client_saw_answered_is_recorded_once(
    tmp_path: Path, models_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drill = kill_under_load(tmp_path, models_dir, KILLS)
    events = events_in(drill.journal_dir)
    by_id = {event.id: event for event in events}
    with capsys.disabled():
        print(  # noqa: T201  a report
            f"\n  {KILLS} kills: {len(drill.answered)} answered, {len(events)} recorded, "
            f"{drill.unanswered} connections broken, refused {drill.refused or 'none'}"
        )
    assert len(by_id) == len(events), "an event is there twice"
    assert drill.answered.keys() <= by_id.keys(), "an answered request is not recorded"
    for request_id, usage in drill.answered.items():
        event = by_id[request_id]
        seen = (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"])
        assert seen == (event.prompt_tokens, event.completion_tokens, event.total_tokens)
    # What was recorded and not seen answered broke off with its connection: one request a client and kill.
    assert len(events) - len(drill.answered) <= drill.unanswered
