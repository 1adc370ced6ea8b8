"""Log lines: one JSON object a line on standard error, in ASCII, so that no value can forge a line."""

from __future__ import annotations

import json
import logging
import os
import traceback
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

import orjson

_STANDARD_ERROR = 2


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
    try:
        os.write(_STANDARD_ERROR, encode(fields))
    except OSError:
        return


def now() -> str:
    """The time of a log line."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


class JsonHandler(logging.Handler):
    """Lines of the standard library's loggers, in the same form."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; its traceback is a field."""
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
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
