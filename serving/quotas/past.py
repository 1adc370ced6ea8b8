"""What was used before this process began: from the ledger, and from the journal beyond what the ledger has.

Serving may not import billing, so this is the contract between them: the tables and columns that the queries
below name (`tests/serving/quotas/test_past.py` holds it against the real ledger). One transaction reads the
sums and how far the ledger's readers have come, so each event counts once: in the ledger up to the offset of
its segment, in the journal behind it. An event that is in both all the same counts twice: too much, not too
little. Events that wait in Kafka are not seen.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime, timezone, tzinfo
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tallybook.calendar import billing_day, day_interval, month_start, next_month
from tallybook.database import connect, reading
from tallybook.segments import SUFFIX, DamagedSegmentError, read_segment
from tallybook.usage import EVENT_TYPE, InvalidEventError, instant

# The hours lag behind the events by what was not rolled up yet.
_SUMS = """
SELECT name, SUM(tokens) FROM (
    SELECT {column} AS name, prompt_tokens + completion_tokens AS tokens
    FROM usage_hours WHERE day >= :first AND day < :end
    UNION ALL
    SELECT e.{column}, e.prompt_tokens + e.completion_tokens
    FROM event_batches b JOIN usage_events e ON e.day = b.day AND e.batch_id = b.id
    WHERE b.day >= :first AND b.day < :end AND NOT b.rolled_up
) AS used GROUP BY name
"""
_OFFSETS = "SELECT segment, offset_bytes FROM journal_offsets"
_NEEDED = ("usage_hours", "event_batches", "usage_events", "journal_offsets")

log = logging.getLogger(__name__)


class Past(NamedTuple):
    """Tokens of each user on the day, and of each project in the month. `problem`: why it is not all."""

    day: date
    month: date
    users: Mapping[str, int]
    projects: Mapping[str, int]
    problem: str | None = None


def read_past(ledger_url: str, journal_dir: Path, zone: tzinfo, now: datetime) -> Past:
    """What was used today and this month, as far as it is durable.

    A ledger that is away is a problem, not an error: then all that the journal still holds is counted.
    """
    day = billing_day(now, zone)
    problem = None
    users: Counter[str] = Counter()
    projects: Counter[str] = Counter()
    offsets: dict[str, int] = {}
    try:
        for connection in ledger_view(ledger_url, _NEEDED):
            users.update(_sums(connection, "user_id", day, date.fromordinal(day.toordinal() + 1)))
            projects.update(_sums(connection, "project", month_start(day), next_month(day)))
            offsets = _offsets(connection)
    except (sa.exc.SQLAlchemyError, OSError) as error:
        told = " ".join(str(getattr(error, "orig", None) or error).split())
        problem = f"the ledger can't be read, so only the journal is counted: {told}"
        users, projects, offsets = Counter(), Counter(), {}
    _add_journal(journal_dir, offsets, day, zone, users, projects)
    return Past(day, month_start(day), users, projects, problem)


def ledger_view(url: str, tables: Iterable[str]) -> Iterator[Connection]:
    """A consistent view of the ledger, once; not at all where there is none yet, or not these tables."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").exists():
        return
    engine = connect(url)
    try:
        with reading(engine) as connection:
            if all(sa.inspect(connection).has_table(name) for name in tables):
                yield connection
    finally:
        engine.dispose()


def ledger_offsets(url: str) -> dict[str, int]:
    """How far the ledger's readers have come in each segment; nowhere where there is no ledger yet.

    Raises: SQLAlchemyError, OSError: it can't be read.
    """
    return next((_offsets(connection) for connection in ledger_view(url, ["journal_offsets"])), {})


def _offsets(connection: Connection) -> dict[str, int]:
    return {row.segment: row.offset_bytes for row in connection.execute(sa.text(_OFFSETS))}


def _sums(connection: Connection, column: str, first: date, end: date) -> dict[str, int]:
    query = sa.text(_SUMS.format(column=column)).bindparams(
        sa.bindparam("first", type_=sa.Date), sa.bindparam("end", type_=sa.Date)
    )
    return {name: int(tokens) for name, tokens in connection.execute(query, {"first": first, "end": end})}


def _add_journal(
    journal_dir: Path,
    offsets: Mapping[str, int],
    day: date,
    zone: tzinfo,
    users: Counter[str],
    projects: Counter[str],
) -> None:
    today = [_text(instant) for instant in day_interval(day, zone)]
    begins = day_interval(month_start(day), zone).start
    month = [_text(begins), _text(day_interval(next_month(day), zone).start)]
    seen: set[str] = set()
    for segment in sorted(journal_dir.glob(f"*{SUFFIX}")):
        told = segment.stat()
        offset = offsets.get(segment.name, 0)
        if offset >= told.st_size or told.st_mtime < begins.timestamp():
            continue
        for event in _events(segment, offset):
            time, data = event["time"], event["data"]
            if event["id"] in seen:
                continue
            seen.add(event["id"])
            tokens = data["prompt_tokens"] + data["completion_tokens"]
            if month[0] <= time < month[1]:
                projects[data["project"]] += tokens
            if today[0] <= time < today[1]:
                users[event["subject"]] += tokens


def _events(segment: Path, offset: int) -> Iterator[dict[str, Any]]:
    """The usage events that a reader believes; what is no event, ingest sets aside."""
    try:
        while (extract := read_segment(segment, offset)).next_offset > offset:
            offset = extract.next_offset
            for line in extract.lines:
                try:
                    record = orjson.loads(line.raw)
                    if record["type"] != EVENT_TYPE:
                        continue
                    time = record["time"]
                    if len(time) != 32 or not time.endswith("+00:00"):
                        record["time"] = _text(instant(time))
                    tokens = record["data"]["prompt_tokens"] + record["data"]["completion_tokens"]
                    if isinstance(tokens, int) and record["subject"] and record["data"]["project"]:
                        yield record
                except (orjson.JSONDecodeError, KeyError, TypeError, InvalidEventError):
                    continue
    except (DamagedSegmentError, OSError) as error:
        log.error("%s is not counted from byte %s on: %s", segment.name, offset, error)  # noqa: TRY400


def _text(moment: datetime) -> str:
    return moment.astimezone(timezone.utc).isoformat(timespec="microseconds")
