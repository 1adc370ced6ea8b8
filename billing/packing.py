"""Events made ready for their database: lines for COPY, or values, that lack nothing but their batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from datetime import date
from typing import Any, NamedTuple

from billing.csv_lines import csv_text
from billing.events import BATCH, EventRow
from billing.merkle import merkle_root


class DayPack(NamedTuple):
    """The events of one day in the order of their ids, and what their batch says of them."""

    day: date
    requests: int
    tokens: tuple[int, int, int]  # prompt, cached and completion
    events_root: bytes
    rows: Any  # bytes as `lines` makes them, or a list of VALUE_COLUMNS

    def lines(self, batch_id: int) -> bytes:
        """LINE_COLUMNS as lines for COPY."""
        lines: bytes = self.rows
        return lines.replace(BATCH, b"%d" % batch_id)


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
    """Make events with different ids ready: for COPY as lines, else as values, as the rows are by now.

    Ids are in one order whatever the day, so that two ingesters never wait for each other in a circle.
    """
    in_order = sorted(rows, key=_id)
    by_day: dict[date, list[EventRow]] = defaultdict(list)
    for row in in_order:
        by_day[row.day].append(row)
    days = []
    for day, its in sorted(by_day.items()):
        prompt, cached, completion = (sum(each) for each in zip(*[row.tokens for row in its], strict=True))
        root = merkle_root([row.content_sha256 for row in its])
        ready = [row.ready for row in its]
        days.append(
            DayPack(day, len(its), (prompt, cached, completion), root, b"".join(ready) if for_copy else ready)
        )
    return Packed((_id_lines if for_copy else _id_values)(in_order), days)


def pack_if_each_once(rows: Collection[EventRow], *, for_copy: bool) -> Packed | None:
    """The same, or None if an id is there twice."""
    return pack(rows, for_copy=for_copy) if len({row.id for row in rows}) == len(rows) else None


def _id(row: EventRow) -> str:
    return row.id


def _id_lines(rows: list[EventRow]) -> bytes:
    batches = {day: _batch_of(day.toordinal()).decode() for day in {row.day for row in rows}}
    return "".join(
        [f"{csv_text(row.id)},{batches[row.day]},\\x{row.content_sha256.hex()}\n" for row in rows]
    ).encode()


def _id_values(rows: list[EventRow]) -> list[tuple[str, int, bytes]]:
    return [(row.id, row.day.toordinal(), row.content_sha256) for row in rows]


def _batch_of(day: int) -> bytes:
    return b"%b%07d" % (BATCH, day)  # as many digits for every day: none is the beginning of another
