"""Events made ready for their database: lines for COPY, or values, that lack nothing but their batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from typing import Any, NamedTuple

from billing.csv_lines import csv_value
from billing.events import SAID, EventRow
from billing.merkle import merkle_root

EVENT_COLUMNS = (*SAID, "day", "batch_id", "hour", "context_band")  # of lines
VALUE_COLUMNS = (*SAID, "hour", "context_band")  # of values: day and batch are the same for all of a batch
_PREFIX = SAID.index("prompt_prefix")
# Stands for the number of a batch. No text of an event holds it: control characters are refused or escaped.
_BATCH = b"\x01"


class DayPack(NamedTuple):
    """The events of one day in the order of their ids, and what their batch says of them."""

    day: date
    requests: int
    tokens: tuple[int, int, int]  # prompt, cached and completion
    events_root: bytes
    rows: Any  # bytes as `lines` makes them, or a list of values

    def lines(self, batch_id: int) -> bytes:
        """EVENT_COLUMNS as lines for COPY."""
        lines: bytes = self.rows
        return lines.replace(_BATCH, b"%d" % batch_id)


class Packed(NamedTuple):
    """Events of which no id is there twice, by day; and all their ids in order, with day and digest."""

    ids: Any  # bytes, or a list of values
    days: list[DayPack]

    @property
    def all_days(self) -> list[date]:
        """The billing days, in their order."""
        return [each.day for each in self.days]

    @property
    def requests(self) -> int:
        """How many events there are."""
        return sum(each.requests for each in self.days)

    def claim_lines(self, batch_of: Mapping[date, int]) -> bytes:
        """Ids, batches and digests as lines for COPY."""
        lines: bytes = self.ids
        for day, batch_id in batch_of.items():
            lines = lines.replace(_batch_of(day.toordinal()), b"%d" % batch_id)
        return lines

    def claims(self, batch_of: Mapping[date, int]) -> list[tuple[str, int, bytes]]:
        """The same as values."""
        numbers = {day.toordinal(): batch_id for day, batch_id in batch_of.items()}
        return [(event_id, numbers[day], digest) for event_id, day, digest in self.ids]


def pack(rows: Iterable[EventRow], *, for_copy: bool) -> Packed:
    """Make events with different ids ready: for COPY as lines, else as values.

    Ids are in one order whatever the day, so that two ingesters never wait for each other in a circle.
    """
    in_order = sorted(rows, key=_id)
    by_day: dict[date, list[EventRow]] = defaultdict(list)
    for row in in_order:
        by_day[row.day].append(row)
    ready: Callable[[date, list[EventRow]], Any] = _lines if for_copy else _values
    days = []
    for day, its in sorted(by_day.items()):
        prompt, cached, completion = (sum(each) for each in zip(*[row.tokens for row in its], strict=True))
        root = merkle_root([row.content_sha256 for row in its])
        days.append(DayPack(day, len(its), (prompt, cached, completion), root, ready(day, its)))
    return Packed((_id_lines if for_copy else _id_values)(in_order), days)


def _id(row: EventRow) -> str:
    return row.id


def _lines(day: date, rows: list[EventRow]) -> bytes:
    parts: list[bytes] = []
    tails: dict[tuple[str, int], bytes] = {}
    for row in rows:
        where = (row.hour, row.context_band)
        tail = tails.get(where)
        if tail is None:
            told = (day.isoformat().encode(), _BATCH, row.hour.encode(), row.context_band)
            tail = tails[where] = b',"%b",%b,"%b",%d\n' % told
        parts += (row.line, tail)
    return b"".join(parts)


def _values(day: date, rows: list[EventRow]) -> list[tuple[Any, ...]]:
    """VALUE_COLUMNS of each."""
    return [(*_stored(row.said), row.hour, row.context_band) for row in rows]


def _stored(said: tuple[Any, ...]) -> tuple[Any, ...]:
    """What was said, as the columns take it: the prefix of a prompt in bytes."""
    prefix = said[_PREFIX]
    return said if prefix is None else (*said[:_PREFIX], prefix.encode(), *said[_PREFIX + 1 :])


def _id_lines(rows: list[EventRow]) -> bytes:
    batches: dict[date, bytes] = {}
    parts: list[bytes] = []
    for row in rows:
        batch = batches.get(row.day)
        if batch is None:
            batch = batches[row.day] = _batch_of(row.day.toordinal())
        parts.append(b"%b,%b,\\x%b\n" % (csv_value(row.id), batch, row.content_sha256.hex().encode()))
    return b"".join(parts)


def _id_values(rows: list[EventRow]) -> list[tuple[str, int, bytes]]:
    return [(row.id, row.day.toordinal(), row.content_sha256) for row in rows]


def _batch_of(day: int) -> bytes:
    return b"%b%07d" % (_BATCH, day)  # as many digits for every day: none is the beginning of another
