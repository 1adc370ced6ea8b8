"""The journal read here and in a process beside: the same chunks, the same errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from select import select

import orjson
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

import billing.reading
from billing.ingest import ingest
from billing.ledger import reading
from billing.reading import Chunk, Parser, parser
from billing.tables import usage_events
from tallybook.acts import Act
from tallybook.segments import DamagedSegmentError, committed
from tallybook.usage import UsageEvent
from tests.billing.factories import TRACED, ZONE, an_event, write_segment


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any journal is worth a process, and that is waited for."""
    monkeypatch.setattr(billing.reading, "WORTH_A_PROCESS_BYTES", 0)
    monkeypatch.setattr(billing.reading, "select", lambda read, write, odd, _now: select(read, write, odd))


@contextmanager
def both(*, for_copy: bool) -> Iterator[tuple[Parser, Parser]]:
    """A parser in this process, and one beside it."""
    beside = billing.reading.WORTH_A_PROCESS_BYTES
    with parser(ZONE, beside - 1, for_copy=for_copy) as one, parser(ZONE, beside, for_copy=for_copy) as other:
        yield one, other


def chunks(reads: Parser, segment: Path) -> list[Chunk]:
    """All of a segment."""
    found: list[Chunk] = []
    offset = 0
    while True:
        reads.ask(segment, offset)
        chunk = reads.answer()
        if chunk.next_offset == offset:
            return found
        found.append(chunk)
        offset = chunk.next_offset


@pytest.mark.parametrize("for_copy", [False, True])
@pytest.mark.usefixtures("at_once")
def test_a_process_beside_reads_what_is_read_here(tmp_path: Path, for_copy: bool) -> None:
    odd = an_event(prompt_prefix='a\x00\x01\n"\\很', **{**TRACED, "api_key_id": 'k"\\'})
    lines: list[UsageEvent | bytes] = [
        an_event(),
        odd,
        b"nonsense",
        orjson.dumps(an_event().to_record() | {"trace": {"a": '"'}}),
    ]
    act = Act(source="tests", who="anna", kind="key.created", details={"key": "k"})
    lines.append(orjson.dumps(act.to_record()))
    segment = write_segment(tmp_path, lines, end=b'{"torn')
    with both(for_copy=for_copy) as (here, beside):
        [one], [other] = chunks(here, segment), chunks(beside, segment)
    assert other[1:-1] == one[1:-1]  # but for when it was read
    assert one.packed is not None
    assert one.packed.requests == len(one.parsed.rows) == 3
    assert other.parsed.rows == []
    assert (other.parsed.poison, other.parsed.acts) == (one.parsed.poison, one.parsed.acts)
    assert (len(one.parsed.poison), len(one.parsed.acts)) == (1, 1)
    assert beside.again(segment, 0, other) == here.again(segment, 0, one) == one.parsed


@pytest.mark.usefixtures("at_once")
def test_a_process_beside_tells_what_is_wrong_with_a_segment(tmp_path: Path) -> None:
    damaged = write_segment(tmp_path, [orjson.dumps(an_event().to_record()), committed(7).strip()])
    with both(for_copy=True) as parsers:
        for each in parsers:
            each.ask(damaged, 0)
            with pytest.raises(DamagedSegmentError, match="follows 1 lines"):
                each.answer()
            each.ask(tmp_path / "gone.jsonl", 0)
            with pytest.raises(FileNotFoundError, match="gone"):
                each.answer()


@pytest.mark.usefixtures("at_once")
def test_every_event_of_a_large_journal_is_stored_as_it_is(ledger: Engine, tmp_path: Path) -> None:
    events = [
        an_event(prompt_prefix=text) for text in ("很好", '"\\\x00', "\\x00", "null", "\\N", "", "\t\r\n")
    ]
    events += [an_event(api_key_id='a"\\b'), an_event(**TRACED), an_event(model_label="canary")]
    again: list[UsageEvent | bytes] = [
        events[0],
        an_event(id=events[1].id, client_ip="10.0.0.9"),
        b"nonsense",
    ]
    write_segment(tmp_path, events, name="0.jsonl")
    write_segment(tmp_path, [*again, an_event(id="last")], name="1.jsonl")
    found = ingest(ledger, tmp_path, ZONE)
    assert (found.stored, found.duplicates) == (len(events) + 1, 1)
    assert found.set_aside == {"conflicting_duplicate": 1, "not_json": 1}
    with reading(ledger) as connection:
        stored = {row.id: row for row in connection.execute(sa.select(usage_events))}
    for event in events:
        row = stored[event.id]
        prefix = None if event.prompt_prefix is None else event.prompt_prefix.encode()
        assert (row.time, row.prompt_prefix) == (event.time, prefix)
        for name in (*TRACED, "client_ip", "status", "usage_estimated", "duration_seconds", "extra"):
            assert getattr(row, name) == getattr(event, name, None)
        assert row.model_label == (event.model_label or "")
