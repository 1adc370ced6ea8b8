import json
import logging
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving import logs

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
