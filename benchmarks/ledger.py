"""The ledger beside its databases: ingest beside raw COPY and executemany, closing beside a bare GROUP BY."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from multiprocessing import get_context
from pathlib import Path
from zoneinfo import ZoneInfo

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from benchmarks.model_server import Row, row
from billing.aggregates import roll_up_now
from billing.bulk import insert_rows
from billing.events import LINE_COLUMNS, EventReader
from billing.ingest import store_journal
from billing.ledger import open_ledger, writing
from billing.tables import usage_events
from tallybook.segments import committed
from tallybook.usage import UsageEvent
from tests.postgres import administrator, running_server

ZONE_NAME = "Asia/Shanghai"
ZONE = ZoneInfo(ZONE_NAME)
DAY = date(2026, 11, 20)
EVENTS, USERS = 500_000, 50_000  # so that what begins only once weighs little
_ledger: Engine  # of a process of the pool
_SERVER = ("-c", "shared_buffers=2GB", "-c", "max_wal_size=8GB", "-c", "work_mem=256MB")


def events(count: int, users: int, day: date = DAY, seed: int = 1) -> Iterator[UsageEvent]:
    """Generated usage of one day: users of unlike appetite, two models, now and then a cached prompt."""
    rng = random.Random(seed)  # noqa: S311 - the same usage in every run
    start = datetime.combine(day, datetime.min.time(), ZONE).astimezone(timezone.utc)
    event = UsageEvent(
        id="", source="bench", time=start, user="", project="", department="retail", operation="analyze",
        model="review-sentiment", model_version="1", tokenizer_fingerprint="f" * 64, prompt_tokens=0,
        completion_tokens=20, duration_seconds=0.01, client_ip="10.0.0.1", status=200, prompt_sha256="0" * 64,
    )  # fmt: skip
    for number in range(count):
        user = int(users * rng.random() ** 2)
        moment = start + timedelta(seconds=86_400 * number / count)
        yield replace(
            event,
            id=f"{int(moment.timestamp() * 1000):012x}-{seed:04x}-{number:016x}",
            time=moment,
            user=f"user-{user}",
            project=f"project-{user % 100}",
            model_version=str(1 + user % 2),
            prompt_tokens=rng.randrange(20, 600),
        )


def write_journal(segment: Path, told: Iterable[UsageEvent]) -> None:
    """A segment as the API writes it under load: a marker behind every hundred events."""
    with segment.open("wb") as file:
        for number, event in enumerate(told, 1):
            file.write(orjson.dumps(event.to_record()) + b"\n")
            if number % 100 == 0:
                file.write(committed(100))


@contextmanager
def postgres(*options: str) -> Iterator[str]:
    """The URL of an empty database on a server that syncs, as in production."""
    with running_server(*_SERVER, *options) as folder:
        with administrator(folder) as connection:
            connection.execute("CREATE DATABASE bench")
        yield f"postgresql+psycopg://postgres@/bench?host={folder}"


def rows(_models_dir: Path) -> Iterator[Row]:
    """Ingest of the same events, raw and through the ledger, on both databases."""
    with tempfile.TemporaryDirectory() as folder, postgres() as url:
        journals = [Path(folder) / str(number) for number in range(3)]
        for number, journal in enumerate(journals):
            journal.mkdir()
            write_journal(journal / f"{number}.jsonl", events(EVENTS, USERS, seed=1 + number))
        yield from _ingest(url, journals[0], "raw COPY into PostgreSQL")
        with get_context("spawn").Pool(2, _begin, (url,)) as side_by_side:
            side_by_side.map(_connected, range(2))
            both = 2 * EVENTS / seconds_of(side_by_side.map, _store, journals[1:])
        yield row("  two ingesters side by side, PostgreSQL", both, "events/s")
        yield from _ingest(f"sqlite:///{folder}/ledger.db", journals[0], "raw executemany into SQLite")


def _begin(url: str) -> None:
    """Connect, once a process."""
    global _ledger
    _ledger = open_ledger(url, ZONE_NAME)


def _connected(_number: int) -> None:
    """Wait until the others of the pool are there as well."""
    time.sleep(0.5)


def _store(journal: Path) -> None:
    store_journal(_ledger, journal, ZONE)


def _ingest(url: str, journal: Path, raw_name: str) -> Iterator[Row]:
    ledger = open_ledger(url, ZONE_NAME)
    raw = EVENTS / _raw(ledger, journal)
    yield row(raw_name, raw, "events/s")
    stored = EVENTS / seconds_of(store_journal, ledger, journal, ZONE)
    yield row("  ingest of the same", stored, "events/s", stored / raw, raw_name)
    rolled = EVENTS / seconds_of(roll_up_now, ledger)
    yield row("  rolling them up into hours", rolled, "events/s", rolled / raw, raw_name)
    ledger.dispose()


def _raw(ledger: Engine, journal: Path) -> float:
    """Insert the same rows, ready made, into a table of the same columns with a primary key; seconds."""
    reader = EventReader(ZONE, for_copy=False)
    read = []
    for segment in sorted(journal.iterdir()):
        with segment.open("rb") as file:
            read += [reader.read(line) for line in file if not line.startswith(b'{"journal"')]
    ready = [(*row.ready[:-2], row.day.isoformat(), 1, *row.ready[-2:]) for row in read]
    del read
    table = usage_events.to_metadata(sa.MetaData(), name="raw_events")
    table.dialect_options["postgresql"]["partition_by"] = None
    table.indexes.clear()
    table.append_constraint(sa.PrimaryKeyConstraint("id"))
    with writing(ledger) as connection:
        table.create(connection)
    started = time.perf_counter()
    with writing(ledger) as connection:
        insert_rows(connection, table, LINE_COLUMNS, ready)
    seconds = time.perf_counter() - started
    with writing(ledger) as connection:
        table.drop(connection)
    return seconds


def seconds_of(function: Callable[..., object], *arguments: object) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started
