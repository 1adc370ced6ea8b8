import json
import logging
import os
import select
import threading
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.observability import logs

FORGERIES = ["a\nb", "a\r\nb", "\u2028", "\u2029", "\x85", "\x9b31m", "\x1b[31m", "\x7f", "\ud800", '"}\n{"']


@pytest.mark.parametrize("value", FORGERIES)
def test_no_value_can_forge_a_line(value: str) -> None:
    line = logs.encode({"path": value})
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert len(line.decode("ascii").splitlines()) == 1
    assert all(byte >= 32 and byte != 127 for byte in line[:-1])
    assert json.loads(line) == {"path": value}


@given(st.dictionaries(st.text(), st.text(st.characters()) | st.none() | st.integers(0, 2**40)))
def test_every_line_reads_back_as_what_was_logged(fields: dict[str, object]) -> None:
    assert json.loads(logs.encode(fields)) == fields


def test_a_log_that_is_closed_fails_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(os, "write", closed)
    logs.write({"message": "request"})


def test_an_exception_is_one_line_with_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[bytes] = []
    monkeypatch.setattr(os, "write", lambda _, line: lines.append(line))
    logger = logging.Logger("test")
    logger.addHandler(logs.JsonHandler())
    try:
        int("with\na line end")
    except ValueError:
        logger.exception("it %s", "failed")
    [line] = lines
    fields = json.loads(line)
    assert (fields["level"], fields["message"]) == ("error", "it failed")
    assert "with\\na line end" in fields["traceback"]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What is written to standard error from here on, a part at a time."""
    parts: list[bytes] = []
    monkeypatch.setattr(os, "write", lambda _, part: parts.append(bytes(part)))
    return parts


def test_lines_that_wait_are_written_whole_in_order_and_together(written: list[bytes]) -> None:
    later = logs.Later()
    for number in range(1000):
        later.write(partial(dict, number=number))
    later.close()
    assert [json.loads(line)["number"] for line in b"".join(written).splitlines()] == list(range(1000))
    assert len(written) < 100
    assert all(part.endswith(b"\n") and len(part) <= select.PIPE_BUF for part in written)


def test_a_line_that_cannot_be_made_takes_no_other_with_it(written: list[bytes]) -> None:
    later = logs.Later()
    later.write(lambda: {"number": 1})
    later.write(lambda: {"number": 1 / 0})
    later.write(lambda: {"number": 3})
    later.close()
    assert [json.loads(line)["number"] for line in b"".join(written).splitlines()] == [1, 3]


def test_a_log_that_nobody_reads_costs_no_memory_and_says_what_is_missing(
    written: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_MOST_WAITING", 5)
    may_write = threading.Event()

    def write(_: int, part: bytes) -> None:
        assert may_write.wait(30)
        written.append(part)

    monkeypatch.setattr(os, "write", write)
    later = logs.Later()
    for number in range(3000):
        later.write(partial(dict, number=number))
    may_write.set()
    later.close()
    lines = [json.loads(line) for line in b"".join(written).splitlines()]
    dropped = sum(int(line["message"].split()[0]) for line in lines if "message" in line)
    assert dropped + sum("number" in line for line in lines) == 3000
    assert dropped > 2000
