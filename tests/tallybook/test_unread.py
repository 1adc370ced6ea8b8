import os
from datetime import datetime, timezone
from pathlib import Path

import pytest

from tallybook.unread import Unread, unread
from tests.billing.factories import an_event, write_segment

THEN = datetime(2026, 11, 21, 4, tzinfo=timezone.utc)


def test_what_stands_behind_the_offsets_waits_since_its_oldest_event(tmp_path: Path) -> None:
    assert unread({}, tmp_path) is None
    old = write_segment(tmp_path, [an_event(time=THEN)], "b.jsonl")
    new = write_segment(tmp_path, [an_event(time=THEN.replace(hour=5))], "a.jsonl")
    for segment in (old, new):
        os.utime(segment, (THEN.timestamp(), THEN.timestamp()))
    sizes = {segment.name: segment.stat().st_size for segment in (old, new)}
    assert unread({}, tmp_path) == Unread(2, sum(sizes.values()), THEN, "b.jsonl")
    assert unread({"b.jsonl": sizes["b.jsonl"]}, tmp_path) == Unread(
        1, sizes["a.jsonl"], THEN.replace(hour=5), "a.jsonl"
    )
    assert unread(sizes, tmp_path) is None


@pytest.mark.parametrize(
    "line",
    [
        b"no event",
        b"\xff",
        b"[" * 60_000,
        b"5",
        b"{}",
        b'{"time": 5}',
        b'{"time": "1970-01-01T00:00:00+00:00"}',
    ],
    ids=["text", "bytes", "deep", "number", "no time", "odd time", "wrong clock"],
)
def test_what_is_no_event_waits_since_its_segment_changed(tmp_path: Path, line: bytes) -> None:
    segment = tmp_path / "a.jsonl"
    segment.write_bytes(line + b"\n")
    os.utime(segment, (THEN.timestamp(), THEN.timestamp()))
    found = unread({}, tmp_path)
    assert found is not None
    assert found.oldest == THEN
