import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from tallybook import acts
from tallybook.acts import MAX_DETAILS_BYTES, Act
from tallybook.segments import read_segment
from tallybook.usage import InvalidEventError

NOON = datetime(2026, 11, 21, 12, tzinfo=timezone.utc)
ACT = Act(source="tests", who="anna", kind="key.created", details={"key": "k1", "models": ["m"]}, time=NOON)


def test_an_act_reads_as_it_was_written() -> None:
    assert Act.from_record(json.loads(json.dumps(ACT.to_record()))) == ACT


def test_a_recorded_act_is_in_the_journal_at_once_and_alone(tmp_path: Path) -> None:
    acts.record(tmp_path / "journal", ACT)
    acts.record(tmp_path / "journal", ACT)
    segments = sorted((tmp_path / "journal").iterdir())
    assert [segment.suffix for segment in segments] == [".jsonl", ".jsonl"]
    for segment in segments:
        extract = read_segment(segment, 0)
        assert [Act.from_record(json.loads(line.raw)) for line in extract.lines] == [ACT]
        assert (extract.torn, extract.next_offset) == (None, segment.stat().st_size)


def test_an_act_that_can_not_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "journal").touch()
    with pytest.raises(OSError, match="journal"):
        acts.record(tmp_path / "journal", ACT)
    with pytest.raises(InvalidEventError):
        acts.record(tmp_path / "other", Act(source="tests", who="", kind="key.created"))
    assert not (tmp_path / "other").exists()


def deep(levels: int) -> Any:
    return [] if levels == 1 else [deep(levels - 1)]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"type": "tallybook.usage.v1"}, "unknown_type"),
        ({"specversion": "0.3"}, "unknown_type"),
        ({"data": []}, "invalid_data"),
        ({"data": {}}, "missing_field"),
        ({"subject": "two\nlines"}, "invalid_text"),
        ({"subject": 7}, "invalid_text"),
        ({"id": "x" * 513}, "invalid_text"),
        ({"time": "yesterday"}, "invalid_time"),
        ({"data": {"kind": "Key"}}, "invalid_kind"),
        ({"data": {"kind": 3}}, "invalid_kind"),
        ({"data": {"kind": "key.created", "x": deep(8)}}, "invalid_details"),
        ({"data": {"kind": "key.created", "x": float("nan")}}, "invalid_details"),
        ({"data": {"kind": "key.created", "x": "\ud800"}}, "invalid_details"),
        ({"data": {"kind": "key.created", "x": "y" * MAX_DETAILS_BYTES}}, "invalid_details"),
    ],
)
def test_what_is_no_act_is_told_by_code(changes: dict[str, Any], code: str) -> None:
    with pytest.raises(InvalidEventError) as caught:
        Act.from_record(ACT.to_record() | changes)
    assert caught.value.code == code


def test_a_missing_field_is_named() -> None:
    record = ACT.to_record()
    del record["subject"], record["time"]
    with pytest.raises(InvalidEventError, match="subject, time is missing"):
        Act.from_record(record)


def test_details_may_be_seven_levels_deep() -> None:
    assert Act.from_record(ACT.to_record() | {"data": {"kind": "key.created", "x": deep(7)}})
