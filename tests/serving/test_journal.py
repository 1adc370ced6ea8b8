import errno
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Any

import orjson
import pytest

from serving import journal as module
from serving.errors import JournalError
from serving.journal import Journal
from tallybook.segments import read_segment

SEGMENT_BYTES = 1 << 20
WAIT_SECONDS = 20.0


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Journal]:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.02)
    made = Journal(tmp_path, SEGMENT_BYTES)
    yield made
    monkeypatch.undo()
    made.close()


def read_all(folder: Path) -> list[Any]:
    """Ids, as ingest would find them."""
    found: list[Any] = []
    for segment in sorted(folder.glob("*.jsonl")):
        offset = 0
        while (extract := read_segment(segment, offset)).next_offset > offset:
            found += [orjson.loads(line.raw)["id"] for line in extract.lines]
            offset = extract.next_offset
    return found


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.005)


def fail_with(number: int) -> Callable[..., Any]:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def test_an_appended_event_is_believed_at_once(journal: Journal, tmp_path: Path) -> None:
    journal.append({"id": "a"}, WAIT_SECONDS)
    assert read_all(tmp_path) == ["a"]


def test_events_of_64_threads_are_each_there_once(tmp_path: Path) -> None:
    commits: list[tuple[int, int]] = []
    journal = Journal(
        tmp_path, SEGMENT_BYTES, lambda events, size_bytes: commits.append((events, size_bytes))
    )

    def append(worker: int) -> list[str]:
        ids = [f"{worker}-{number}" for number in range(20)]
        for event_id in ids:
            journal.append({"id": event_id}, WAIT_SECONDS)
        return ids

    with ThreadPoolExecutor(64) as pool:
        expected = [event_id for ids in pool.map(append, range(64)) for event_id in ids]
    journal.close()
    assert sorted(read_all(tmp_path)) == sorted(expected)
    assert sum(events for events, _ in commits) == len(expected)
    assert len(commits) < len(expected), "no two events ever shared a sync"


def test_a_full_segment_is_followed_by_a_fresh_one(tmp_path: Path) -> None:
    journal = Journal(tmp_path, segment_bytes=4096)
    ids = [f"{number:03d}" for number in range(30)]
    for event_id in ids:
        journal.append({"id": event_id, "filling": "x" * 500}, WAIT_SECONDS)
    journal.close()
    assert read_all(tmp_path) == ids
    assert len(list(tmp_path.glob("*.jsonl"))) >= 3


def test_no_value_can_end_its_line(journal: Journal, tmp_path: Path) -> None:
    hostile = 'a\n{"journal":"refused"}\r\n\u2028\x00"\\'
    journal.append({"id": hostile}, WAIT_SECONDS)
    assert read_all(tmp_path) == [hostile]


@pytest.mark.parametrize("failing", ["fdatasync", "write"])
def test_a_failing_disk_refuses_the_event_and_recovers_by_itself(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    journal.append({"id": "before"}, WAIT_SECONDS)
    with monkeypatch.context() as disk:
        disk.setattr(os, failing, fail_with(errno.EIO))
        with pytest.raises(JournalError):
            journal.append({"id": "refused"}, WAIT_SECONDS)
        assert journal.problem() is not None
        with pytest.raises(JournalError):
            journal.append({"id": "refused too"}, WAIT_SECONDS)
    wait_until(lambda: journal.problem() is None)
    journal.append({"id": "after"}, WAIT_SECONDS)
    assert read_all(tmp_path) == ["before", "after"]


def test_refused_events_stay_locked_away_until_they_can_be_taken_back(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.append({"id": "before"}, WAIT_SECONDS)
    with monkeypatch.context() as disk:
        disk.setattr(os, "fdatasync", fail_with(errno.EIO))
        disk.setattr(os, "ftruncate", fail_with(errno.EROFS))
        with pytest.raises(JournalError):
            journal.append({"id": "refused"}, WAIT_SECONDS)
        [segment] = tmp_path.glob("*.jsonl")
        assert b'"refused"' in segment.read_bytes()
        assert read_all(tmp_path) == ["before"]
        assert journal.problem() is not None
    wait_until(lambda: journal.problem() is None)
    journal.append({"id": "after"}, WAIT_SECONDS)
    assert read_all(tmp_path) == ["before", "after"]


def test_a_folder_that_cannot_be_made_is_a_problem_until_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.02)
    folder = tmp_path / "journal"
    folder.write_text("a file is in the way")
    journal = Journal(folder, SEGMENT_BYTES)
    assert "File exists" in (journal.problem() or "")
    with pytest.raises(JournalError):
        journal.append({"id": "refused"}, WAIT_SECONDS)
    folder.unlink()
    wait_until(lambda: journal.problem() is None)
    journal.append({"id": "after"}, WAIT_SECONDS)
    journal.close()
    assert read_all(folder) == ["after"]


def test_a_folder_that_was_removed_under_the_writer_refuses_and_recovers(
    journal: Journal, tmp_path: Path
) -> None:
    for segment in tmp_path.glob("*.jsonl"):
        segment.unlink()
    with pytest.raises(JournalError):
        journal.append({"id": "refused"}, WAIT_SECONDS)
    wait_until(lambda: journal.problem() is None)
    journal.append({"id": "after"}, WAIT_SECONDS)
    assert read_all(tmp_path) == ["after"]


def test_an_event_that_gave_up_waiting_is_never_written(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk_answers, disk_is_asked = threading.Event(), threading.Event()
    sync = os.fdatasync

    def slow_sync(file: int) -> None:
        disk_is_asked.set()
        assert disk_answers.wait(WAIT_SECONDS)
        sync(file)

    monkeypatch.setattr(os, "fdatasync", slow_sync)
    with ThreadPoolExecutor(1) as pool:  # half a second, in which even a busy machine begins the first batch
        slow = pool.submit(journal.append, {"id": "slow"}, 0.5)
        assert disk_is_asked.wait(WAIT_SECONDS)
        with pytest.raises(JournalError):
            journal.append({"id": "gave up"}, 0.5)
        assert not slow.done(), "an event that is being written must wait for its fate"
        disk_answers.set()
        slow.result(WAIT_SECONDS)
    assert read_all(tmp_path) == ["slow"]


def test_a_disk_that_does_not_answer_is_a_problem_until_it_does(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STALL_SECONDS", 0.0)
    disk_answers, disk_is_asked = threading.Event(), threading.Event()

    def slow_sync(_: int) -> None:
        disk_is_asked.set()
        assert disk_answers.wait(WAIT_SECONDS)

    monkeypatch.setattr(os, "fdatasync", slow_sync)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(journal.append, {"id": "slow"}, WAIT_SECONDS)
        assert disk_is_asked.wait(WAIT_SECONDS)
        wait_until(lambda: "has not answered" in (journal.problem() or ""))
        disk_answers.set()
        slow.result(WAIT_SECONDS)
    wait_until(lambda: journal.problem() is None)


def test_closing_commits_what_waits_and_refuses_what_comes_later(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk_answers, disk_is_asked = threading.Event(), threading.Event()
    sync = os.fdatasync

    def slow_sync(file: int) -> None:
        disk_is_asked.set()
        assert disk_answers.wait(WAIT_SECONDS)
        sync(file)

    monkeypatch.setattr(os, "fdatasync", slow_sync)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(journal.append, {"id": "1"}, WAIT_SECONDS)
        assert disk_is_asked.wait(WAIT_SECONDS)
        second = pool.submit(journal.append, {"id": "2"}, WAIT_SECONDS)
        wait_until(lambda: not journal._queue.empty())
        closing = pool.submit(journal.close)
        wait_until(lambda: journal.problem() == "the journal is closed")
        with pytest.raises(JournalError):
            journal.append({"id": "3"}, WAIT_SECONDS)
        with pytest.raises(FutureTimeoutError):
            closing.result(0.2)
        disk_answers.set()
        for waiting in (first, second, closing):
            waiting.result(WAIT_SECONDS)
    assert read_all(tmp_path) == ["1", "2"]


WRITER = """
import sys, threading
from pathlib import Path
from serving.journal import Journal
journal = Journal(Path(sys.argv[1]), 20_000)
said = threading.Lock()

def work(worker):
    number = 0
    while True:
        event_id = f"{worker}-{number}"
        journal.append({"id": event_id, "filling": "x" * 300}, 20.0)
        with said:
            print(event_id, flush=True)
        number += 1

for worker in range(8):
    threading.Thread(target=work, args=(worker,)).start()
"""


@pytest.mark.parametrize("seed", range(4))
def test_a_killed_writer_leaves_every_acknowledged_event_once(tmp_path: Path, seed: int) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    enough = random.Random(seed).randint(1, 400)  # noqa: S311 -- where to kill, no secret
    acknowledged = [writer.stdout.readline().strip() for _ in range(enough)]
    writer.kill()
    acknowledged += [line.strip() for line in writer.stdout if line.endswith("\n")]
    writer.wait()
    read = read_all(tmp_path)
    assert len(set(read)) == len(read)
    assert set(acknowledged) <= set(read)
    # Of each worker at most one event was under way: submitted, not acknowledged.
    assert len(read) <= len(acknowledged) + 8


FULL_DISK = """
import resource, sys
from pathlib import Path
import serving.journal as module
from serving.errors import JournalError
module.RETRY_SECONDS = 0.02
journal = module.Journal(Path(sys.argv[1]), 1 << 20)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
number = 0
try:
    while True:
        journal.append({"id": number, "filling": "x" * 700}, 20.0)
        number += 1
except JournalError:
    print("refused", number, journal.problem(), flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
while journal.problem():
    module.time.sleep(0.01)
journal.append({"id": "after"}, 20.0)
journal.close()
"""


def test_a_full_disk_refuses_what_does_not_fit_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tmp_path], check=True, capture_output=True, text=True, timeout=60
    )
    word, number, reason = ran.stdout.strip().split(" ", 2)
    assert word == "refused"
    assert "File too large" in reason
    assert int(number) > 100
    assert read_all(tmp_path) == [*range(int(number)), "after"]
