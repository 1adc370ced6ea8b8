"""Events made ready for their database: lines for COPY, or values, that lack nothing but their batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from datetime import date
from typing import Any, NamedTuple

from billing.csv_lines import csv_text
from billing.events import BATCH, EventRow
from billing.merkle import merkle_root


class DayPack(NamedTuple):
    """What the batch of a day says of its events."""

    day: date
    requests: int
    tokens: tuple[int, int, int]  # prompt, cached and completion
    events_root: bytes


class Lines(NamedTuple):
    """Rows as lines for COPY, in the order of their ids, with stand-ins for the numbers of their batches."""

    ids: bytes  # of `event_ids`; for the stand-in see `batch_stand_in`
    events: list[bytes]  # LINE_COLUMNS, of each day; the stand-in is BATCH


class Values(NamedTuple):
    """Rows as values, in the order of their ids."""

    ids: list[tuple[str, int, bytes]]  # of all days: the id, which of the days it is on, and the digest
    events: list[list[tuple[Any, ...]]]  # VALUE_COLUMNS, of each day


class Staged(NamedTuple):
    """Values in a SQLite file, as `billing.staging` lays it out; there until the next chunk is asked for."""

    file: str


class Packed(NamedTuple):
    """Events of which no id is there twice, by day in the order of days, and their rows."""

    days: list[DayPack]
    rows: Lines | Values | Staged

    @property
    def all_days(self) -> list[date]:
        """The billing days, in their order."""
        return [each.day for each in self.days]

    @property
    def requests(self) -> int:
        """How many events there are."""
        return sum(each.requests for each in self.days)

    @property
    def staged_file(self) -> str | None:
        """The file that the transaction which stores them has to have attached, if any."""
        return self.rows.file if isinstance(self.rows, Staged) else None


def pack(rows: Iterable[EventRow], *, for_copy: bool) -> Packed:
    """Make events with different ids ready: for COPY as lines, else as values, as the rows are by now.

    Ids are in one order whatever the day, so that two ingesters never wait for each other in a circle.
    """
    in_order = sorted(rows, key=_id)
    by_day: dict[date, list[EventRow]] = defaultdict(list)
    for row in in_order:
        by_day[row.day].append(row)
    numbers = {day: number for number, day in enumerate(sorted(by_day))}
    days = []
    for day in numbers:
        its = by_day[day]
        prompt, cached, completion = (sum(each) for each in zip(*[row.tokens for row in its], strict=True))
        root = merkle_root([row.content_sha256 for row in its])
        days.append(DayPack(day, len(its), (prompt, cached, completion), root))
    ready = [[row.ready for row in by_day[day]] for day in numbers]
    if for_copy:
        return Packed(days, Lines(_id_lines(in_order, numbers), [b"".join(lines) for lines in ready]))
    ids = [(row.id, numbers[row.day], row.content_sha256) for row in in_order]
    return Packed(days, Values(ids, ready))


def pack_if_each_once(rows: Collection[EventRow], *, for_copy: bool) -> Packed | None:
    """The same, or None if an id is there twice."""
    return pack(rows, for_copy=for_copy) if len({row.id for row in rows}) == len(rows) else None


def batch_stand_in(number: int) -> bytes:
    """What stands in the lines of ids for the batch of a day, the first being 0.

    Of as many digits for every day, so that none is the beginning of another.
    """
    return b"%b%07d" % (BATCH, number)


def _id(row: EventRow) -> str:
    return row.id


def _id_lines(rows: list[EventRow], numbers: dict[date, int]) -> bytes:
    batches = {day: batch_stand_in(number).decode() for day, number in numbers.items()}
    return "".join(
        [f"{csv_text(row.id)},{batches[row.day]},\\x{row.content_sha256.hex()}\n" for row in rows]
    ).encode()
