"""The journal read here and in processes beside: the same chunks, the same errors."""

import os
import signal
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from select import select
from shutil import rmtree

import orjson
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

import billing.reading
from billing.audit import verify
from billing.chunks import CHUNK_BYTES
from billing.ingest import ingest
from billing.ledger import reading
from billing.packing import Packed, Values
from billing.reading import Reader, reader
from billing.tables import journal_reads, usage_events
from tallybook.acts import Act
from tallybook.segments import DamagedSegmentError, committed
from tallybook.usage import UsageEvent
from tests.billing.factories import NOON, TRACED, ZONE, an_event, write_segment


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any journal is worth a process, and that is waited for."""
    monkeypatch.setattr(billing.reading, "WORTH_A_PROCESS_BYTES", 0)
    monkeypatch.setattr(billing.reading, "select", lambda read, write, odd, _now: select(read, write, odd))


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder of processes that are started from now on."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


@contextmanager
def both(*, for_copy: bool) -> Iterator[tuple[Reader, Reader]]:
    """A reader in this process, and one beside it."""
    beside = billing.reading.WORTH_A_PROCESS_BYTES
    with reader(ZONE, beside - 1, for_copy=for_copy) as one, reader(ZONE, beside, for_copy=for_copy) as other:
        yield one, other


def processes_beside() -> list[int]:
    """The numbers of the processes that read for this one."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [
        int(child) for child in children if b"billing.reading" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def large_segment(journal: Path, size: int) -> Path:
    """A segment of at least so many bytes in batches, its few events of 100 kB each on three days."""
    events = (an_event(time=NOON - timedelta(days=n % 3), prompt_prefix="x" * 100_000) for n in count())
    segment = journal / "large.jsonl"
    with segment.open("wb") as file:
        while file.tell() < size:
            file.write(orjson.dumps(next(events).to_record()) + b"\n" + committed(1))
    return segment


def staged(packed: Packed) -> Values:
    """What the file that a process has left holds."""
    assert packed.staged_file is not None
    with closing(sqlite3.connect(packed.staged_file)) as connection:
        ids = connection.execute("SELECT * FROM ids").fetchall()
        events = connection.execute("SELECT * FROM events").fetchall()
    days = [
        [tuple(values) for *values, day, number in events if (day, number) == (str(each), index)]
        for index, each in enumerate(packed.all_days)
    ]
    return Values(ids, days)


@pytest.mark.parametrize("for_copy", [False, True])
@pytest.mark.usefixtures("at_once")
def test_a_process_beside_reads_what_is_read_here(tmp_path: Path, for_copy: bool) -> None:
    odd = an_event(prompt_prefix='a\x00\x01\n"\\很', **{**TRACED, "api_key_id": 'k"\\'})
    lines: list[UsageEvent | bytes] = [
        an_event(),
        odd,
        b"nonsense",
        orjson.dumps(an_event().to_record() | {"trace": {"a": '"'}}),
        an_event(time=NOON - timedelta(days=3)),
    ]
    act = Act(source="tests", who="anna", kind="key.created", details={"key": "k"})
    lines.append(orjson.dumps(act.to_record()))
    segment = write_segment(tmp_path, lines, end=b'{"torn')
    with both(for_copy=for_copy) as (here, beside):
        [one] = here.chunks(segment, 0)
        with closing(beside.chunks(segment, 0)) as chunks:
            other = next(chunks)
            assert one.packed is not None
            assert other.packed is not None
            assert other.packed.days == one.packed.days
            assert (other.packed.rows if for_copy else staged(other.packed)) == one.packed.rows
            assert list(chunks) == []
        assert other[2:-1] == one[2:-1]  # but for when it was read
        assert one.packed.requests == len(one.parsed.rows) == 4
        assert other.parsed.rows == []
        assert (other.parsed.poison, other.parsed.acts) == (one.parsed.poison, one.parsed.acts)
        assert (len(one.parsed.poison), len(one.parsed.acts)) == (1, 1)
        assert beside.again(segment, 0, other) == here.again(segment, 0, one) == one.parsed


@pytest.mark.usefixtures("at_once")
def test_processes_that_read_by_turns_give_the_chunks_in_their_order(tmp_path: Path) -> None:
    segment = large_segment(tmp_path, 5 * CHUNK_BYTES)
    with both(for_copy=True) as (here, beside):
        expected = [(chunk.next_offset, chunk.packed) for chunk in here.chunks(segment, 0)]
        assert len(expected) > 3
        assert [(chunk.next_offset, chunk.packed) for chunk in beside.chunks(segment, 0)] == expected
        with closing(beside.chunks(segment, 0)) as chunks:  # what is read ahead is given up
            assert next(chunks).next_offset == expected[0][0]
        from_second = list(beside.chunks(segment, expected[0][0]))
    assert [(chunk.next_offset, chunk.packed) for chunk in from_second] == expected[1:]


@pytest.mark.usefixtures("at_once")
def test_a_chunk_that_is_staged_stays_while_the_next_ones_are(tmp_path: Path) -> None:
    segment = large_segment(tmp_path, 5 * CHUNK_BYTES)
    with both(for_copy=False) as (here, beside):
        expected = [chunk.packed and chunk.packed.rows for chunk in here.chunks(segment, 0)]
        found = []
        for chunk in beside.chunks(segment, 0):
            time.sleep(0.5)  # until those that were asked for by now are staged
            found.append(chunk.packed and staged(chunk.packed))
    assert found == expected


@pytest.mark.usefixtures("at_once")
def test_processes_beside_leave_nothing_behind(tmp_path: Path, temporary: Path) -> None:
    segment = write_segment(tmp_path, [an_event()])
    with both(for_copy=False) as (_, beside):
        assert len(list(beside.chunks(segment, 0))) == 1
        assert len(list(temporary.glob("*/*"))) == 1
    assert list(temporary.iterdir()) == []


@pytest.mark.usefixtures("at_once")
def test_a_temporary_folder_is_asked_for_only_to_stage(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "none")])
    segment = write_segment(tmp_path, [an_event()])
    with reader(ZONE, 0, for_copy=True) as beside:
        assert len(list(beside.chunks(segment, 0))) == 1
        assert list(temporary.iterdir()) == []
    with pytest.raises(OSError, match="No usable temporary directory"), reader(ZONE, 0, for_copy=False):
        pass


@pytest.mark.usefixtures("at_once")
def test_a_process_that_can_stage_nothing_says_so(tmp_path: Path, temporary: Path) -> None:
    segment = write_segment(tmp_path, [an_event()])
    with both(for_copy=False) as (_, beside):
        assert len(list(beside.chunks(segment, 0))) == 1  # so that both have started
        for folder in temporary.iterdir():
            rmtree(folder)
        with pytest.raises(OSError, match="what was read can't be staged"):
            list(beside.chunks(segment, 0))


@pytest.mark.usefixtures("at_once")
def test_a_process_beside_that_is_halted_in_an_answer_tells_the_rest_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")  # as in our images
    segment = large_segment(tmp_path, 2 * CHUNK_BYTES)
    with both(for_copy=True) as (here, beside):
        expected = [chunk.next_offset for chunk in here.chunks(segment, 0)]
        with closing(beside.chunks(segment, 0)) as chunks:
            found = [next(chunks).next_offset]
            time.sleep(1)  # until the next answer has filled its pipe
            for number in (signal.SIGSTOP, signal.SIGCONT):
                for process in processes_beside():
                    os.kill(process, number)
            found += [chunk.next_offset for chunk in chunks]
    assert found == expected


@pytest.mark.usefixtures("at_once")
def test_processes_beside_end_with_whom_they_read_for_and_not_before(tmp_path: Path) -> None:
    segment = write_segment(tmp_path, [an_event()])
    with both(for_copy=True) as (_, beside):
        assert len(list(beside.chunks(segment, 0))) == 1
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # as all of a group get them
            for process in processes_beside():
                os.kill(process, number)
        assert len(list(beside.chunks(segment, 0))) == 1


@pytest.mark.usefixtures("at_once")
def test_a_process_beside_that_was_killed_between_segments_is_told(tmp_path: Path) -> None:
    segment = write_segment(tmp_path, [an_event()])
    with both(for_copy=True) as (_, beside):
        assert len(list(beside.chunks(segment, 0))) == 1
        for process in processes_beside():
            os.kill(process, signal.SIGKILL)
            os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
        # No BrokenPipeError, with which a command leaves quietly.
        with pytest.raises(OSError, match="a process that reads the journal has ended"):
            list(beside.chunks(segment, 0))


@pytest.mark.usefixtures("at_once")
def test_a_process_beside_tells_what_is_wrong_with_a_segment(tmp_path: Path) -> None:
    damaged = write_segment(tmp_path, [orjson.dumps(an_event().to_record()), committed(7).strip()])
    with both(for_copy=True) as readers:
        for each in readers:
            with pytest.raises(DamagedSegmentError, match="follows 1 lines"):
                list(each.chunks(damaged, 0))
            with pytest.raises(FileNotFoundError, match="gone"):
                list(each.chunks(tmp_path / "gone.jsonl", 0))


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


@pytest.mark.usefixtures("at_once")
def test_chunks_of_several_days_that_come_by_turns_are_stored_as_they_are(
    ledger: Engine, tmp_path: Path
) -> None:
    segment = large_segment(tmp_path, 5 * CHUNK_BYTES)  # of which a process has several, one after the other
    found = ingest(ledger, tmp_path, ZONE)
    with reading(ledger) as connection:
        verify(connection)
        steps = connection.execute(sa.select(journal_reads)).all()
        stored = {
            row.id: row.time for row in connection.execute(sa.select(usage_events.c.id, usage_events.c.time))
        }
    records = [orjson.loads(line) for line in segment.read_bytes().splitlines()[::2]]
    assert stored == {record["id"]: datetime.fromisoformat(record["time"]) for record in records}
    assert found.stored == len(records)
    assert len(steps) > 5
