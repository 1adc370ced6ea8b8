"""Log lines: one JSON object a line on standard error, in ASCII, so that no value can forge a line."""

from __future__ import annotations

import json
import logging
import os
import select
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from queue import SimpleQueue
from typing import Any

import orjson

_STANDARD_ERROR = 2
_GATHER_SECONDS = 0.02  # lines of this time are written at once
_MOST_WAITING = 20_000  # lines; a reader of the log that has stopped must not fill the memory


def encode(fields: Mapping[str, Any]) -> bytes:
    """A line. Whatever a terminal or a reader might take for a command or a line end is escaped."""
    try:
        line = orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError:  # half a surrogate pair, from a path that is not UTF-8
        line = b"\xff"
    if line.isascii():
        return line.replace(b"\x7f", b"\\u007f")
    return json.dumps(fields).encode().replace(b"\x7f", b"\\u007f") + b"\n"


def write(fields: Mapping[str, Any]) -> None:
    """Write a line. A log that can't be written must not fail a request that is already billed."""
    _put([encode(fields)])


def _put(lines: Iterable[bytes]) -> None:
    """Write whole lines, in parts that a pipe takes undivided, since other workers write to the same one."""
    part = b""
    try:
        for line in lines:
            if len(part) + len(line) > select.PIPE_BUF:
                os.write(_STANDARD_ERROR, part)
                part = b""
            part += line
        if part:
            os.write(_STANDARD_ERROR, part)
    except OSError:
        return


def _made(line: Callable[[], Mapping[str, Any]]) -> bytes:
    try:
        return encode(line())
    except Exception:
        logging.getLogger(__name__).exception("a line of the log can't be made")
        return b""


def moment(seconds: float) -> str:
    """A time of `time.time()` as a log line tells it."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds")


class Later:
    """Writes lines in a thread of its own, many at once, in the order in which they came.

    A line is on standard error a moment after it was handed over, and at the latest when this is closed. Of a
    process that is killed the last lines may be missing; what is billed stands in the journal.
    """

    def __init__(self) -> None:
        """Make it in the process that uses it: its thread does not survive a fork."""
        self._waiting: SimpleQueue[Callable[[], Mapping[str, Any]] | None] = SimpleQueue()
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, line: Callable[[], Mapping[str, Any]]) -> None:
        """Write the line that `line()` gives, soon; or tell how many there was no room for."""
        if self._waiting.qsize() >= _MOST_WAITING:
            self._dropped += 1
        else:
            self._waiting.put(line)

    def close(self) -> None:
        """Write what waits."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        more = True
        while more:
            first = self._waiting.get()
            time.sleep(_GATHER_SECONDS)
            makers = [first, *(self._waiting.get() for _ in range(self._waiting.qsize()))]
            more = None not in makers
            _put([_made(make) for make in makers if make is not None])
            dropped, self._dropped = self._dropped, 0
            if dropped:
                message = f"{dropped} lines had no room in the log"
                write({"time": moment(time.time()), "level": "error", "message": message})


class JsonHandler(logging.Handler):
    """Lines of the standard library's loggers, in the same form."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; its traceback is a field."""
        fields: dict[str, Any] = {
            "time": moment(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info and record.exc_info[1] is not None:
            fields["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))
        write(fields)


def configure() -> None:
    """Send the logs of the whole process to standard error."""
    root = logging.getLogger()
    root.handlers[:] = [JsonHandler()]
    root.setLevel(logging.INFO)
