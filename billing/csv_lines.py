"""Rows as the CSV that COPY reads: NULL is null, the escape is a backslash."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson


def csv_line(values: Sequence[Any]) -> bytes:
    """Values as a line for `billing.bulk.copy_lines`, without its end."""
    told = orjson.dumps(values)
    return told[1:-1] if b"\\" not in told else b",".join(map(csv_value, values))


def csv_value(value: Any) -> bytes:
    """One value of such a line."""
    return csv_text(value).encode() if isinstance(value, str) else orjson.dumps(value)


def csv_text(value: str) -> str:
    """A text as such a value."""
    if "\\" in value or '"' in value:
        value = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{value}"'
