"""Lines of a journal as rows of the ledger, and what is no event. Needs no database."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from typing import NamedTuple

import orjson

from billing.events import EventReader, EventRow
from tallybook.acts import Act, is_act
from tallybook.segments import Line
from tallybook.usage import InvalidEventError

_AHEAD = timedelta(days=1)  # how far a server's clock may be ahead of ours


class Poison(NamedTuple):
    """A line that can't be stored, and why."""

    line: Line
    code: str
    message: str


@dataclass(frozen=True)
class Parsed:
    """Lines as read: rows in their order, each with its line, acts likewise, and what is neither."""

    rows: list[tuple[Line, EventRow]]
    poison: list[Poison]
    acts: list[tuple[Line, Act]] = field(default_factory=list)

    @property
    def days(self) -> set[date]:
        """The billing days of the rows."""
        return {row.day for _, row in self.rows}


def parse(lines: Iterable[Line], reader: EventReader, now: datetime | None = None) -> Parsed:
    """Read lines, which needs no database; what is no event or act, or comes from the future, is poison."""
    horizon = ((now or datetime.now(timezone.utc)) + _AHEAD).isoformat(timespec="microseconds")
    rows: list[tuple[Line, EventRow]] = []
    parsed = Parsed(rows, [])
    for line in lines:
        try:
            row = reader.read(line.raw)
        except InvalidEventError as error:
            _parse_other(line, error, horizon, parsed)
            continue
        if row.time > horizon:
            parsed.poison.append(_ahead(line, row.time))
        else:
            rows.append((line, row))
    return parsed


def read_act(raw: bytes) -> Act | None:
    """The act in a line, or None if the line claims to be none.

    Raises: InvalidEventError: it claims to be an act, and is none.
    """
    try:
        record = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    return Act.from_record(record) if is_act(record) else None


def _parse_other(line: Line, error: InvalidEventError, horizon: str, parsed: Parsed) -> None:
    """Take a line that is no event: an act, or poison."""
    try:
        act = read_act(line.raw) if error.code == "unknown_type" else None
    except InvalidEventError as unfit:
        error, act = unfit, None
    if act is None:
        parsed.poison.append(Poison(line, error.code, str(error)))
    elif (time := act.time.isoformat(timespec="microseconds")) > horizon:
        parsed.poison.append(_ahead(line, time))
    else:
        parsed.acts.append((line, act))


def _ahead(line: Line, time: str) -> Poison:
    return Poison(line, "future_time", f"its time, {time}, is more than a day ahead")
