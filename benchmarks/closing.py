"""Closing a large day on PostgreSQL: beside a bare GROUP BY over its events, and as the ledger grows."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from decimal import Decimal
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from benchmarks.ledger import ZONE, ZONE_NAME, postgres, seconds_of
from benchmarks.model_server import Row, row
from billing.aggregates import day_sums, roll_up
from billing.bills import close_day, rate_day
from billing.ledger import open_ledger, reading, writing
from billing.partitions import partition_name, prepare_days
from billing.prices.book import sync_prices
from billing.prices.price_list import Price
from billing.prices.tariff import Tariff
from billing.tables import usage_events
from tallybook.calendar import day_interval

EVENTS = int(os.environ.get("TALLYBOOK_BENCH_EVENTS", "1000000"))
USERS = EVENTS // 100
_PER_BATCH = 3000
_PER_PART = 500_000  # events made in one statement
LISTED = Price(
    model="review-sentiment", model_version=None, effective_from=date(2026, 1, 1), currency="CNY",
    per_tokens=1000, input=Decimal("0.80"), cached_input=Decimal("0.20"), output=Decimal("2.40"),
)  # fmt: skip


def fill(ledger: Engine, day: date, events: int, users: int, *, hashed: bool = True) -> None:
    """Make a day of usage inside the database: rows as ingest writes them, but with made-up hashes.

    `hashed`: whether the events have the hash of their prompt.
    """
    prepare_days(ledger, [day])
    with writing(ledger) as connection:
        first = connection.scalar(sa.text("SELECT nextval('event_batches_id_seq')")) or 1
        taken = {"last": first + events // _PER_BATCH}
        connection.execute(sa.text("SELECT setval('event_batches_id_seq', :last)"), taken)
    values = {
        "day": day, "first": first, "start": day_interval(day, ZONE).start, "step": 86_400 / events,
        "users": users, "prompt": "0" * 64 if hashed else None,
    }  # fmt: skip
    parts = -(-events // _PER_PART)
    jobs = [
        (statement, values | {"from": events * part // parts, "to": events * (part + 1) // parts - 1})
        for part in range(parts)
        for statement in (_EVENTS, _IDS)
    ]
    jobs.append((_BATCHES, values | {"from": 0, "to": events - 1}))

    def insert(job: tuple[str, dict[str, Any]]) -> None:
        with writing(ledger) as connection:
            connection.execute(sa.text(job[0]), job[1])

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(insert, jobs))
    with ledger.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f"VACUUM ANALYZE {partition_name(day)}")


# An event's number decides all of it but its user, so that its row, its id and its batch can be made apart.
_GENERATED = f"""
    SELECT n, :start + n * :step * interval '1 second' AS moment, :first + n / {_PER_BATCH} AS batch_id,
        20 + n % 577 AS prompt_tokens
    FROM generate_series(CAST(:from AS integer), CAST(:to AS integer)) AS n
"""  # noqa: S608
_ID = "to_char(moment, 'YYYYMMDDHH24MISS') || lpad(to_hex(n), 16, '0')"
_EVENTS = f"""
    INSERT INTO usage_events (
        day, id, batch_id, hour, source, time, user_id, project, department, model, model_version,
        model_label, latency_class, context_band, operation, tokenizer_fingerprint, prompt_tokens,
        cached_tokens, completion_tokens, usage_estimated, duration_seconds, client_ip, status, prompt_sha256
    )
    SELECT :day, {_ID}, batch_id, date_trunc('hour', moment), 'bench', moment, 'user-' || who,
        'project-' || who % 100, 'retail', 'review-sentiment', (1 + who % 2)::text, '', 'standard', 0,
        'analyze', repeat('f', 64), prompt_tokens, 0, 20, false, 0.01, '10.0.0.1', 200, CAST(:prompt AS text)
    FROM (
        SELECT *, (CAST(:users AS integer) * power(random(), 2))::integer AS who
        FROM ({_GENERATED}) AS each
    ) AS generated
"""  # noqa: S608
_IDS = f"INSERT INTO event_ids SELECT {_ID}, batch_id, sha256('bench') FROM ({_GENERATED}) AS each"  # noqa: S608
_BATCHES = f"""
    INSERT INTO event_batches (
        id, day, bill_day, segment, offset_bytes, requests, prompt_tokens, cached_tokens, completion_tokens,
        events_root, rolled_up
    )
    SELECT batch_id, :day, :day, 'bench', batch_id, count(*), sum(prompt_tokens), 0, 20 * count(*),
        sha256('bench'), false
    FROM ({_GENERATED}) AS each GROUP BY batch_id
"""  # noqa: S608


def rows(_models_dir: Path) -> Iterator[Row]:
    """Rating and closing a day beside a GROUP BY over its events, for two sizes with the same users."""
    rating: list[float] = []
    for events, day in ((EVENTS // 10, date(2026, 11, 19)), (EVENTS, date(2026, 11, 20))):
        with postgres() as url:
            ledger = open_ledger(url, ZONE_NAME)
            fill(ledger, day, events, USERS)
            rolled = seconds_of(_roll_up, ledger)
            bare = min(seconds_of(_group, ledger, day) for _ in range(2))
            with get_context("spawn").Pool(1) as other:  # so that its memory is its own
                rated, closed, lines, megabytes = other.apply(_close, (url, day))
            size = ledger_bytes(ledger) / events
            ledger.dispose()
        rating.append(rated)
        name = f"{events:,} events of {USERS:,} users"
        yield row(f"bare GROUP BY over {name}", bare, "s")
        yield row("  rolling them up into hours", rolled, "s", rolled / bare, "the GROUP BY")
        yield row(
            f"  closing that day: rating, proof, seal; {lines:,} lines",
            closed,
            "s",
            closed / bare,
            "the GROUP BY",
        )
        yield row("    memory of that process", megabytes, "MB")
        yield row("  ledger, indexes included", size, "bytes/event")
    yield row(
        "rating that day from its hours",
        rating[1],
        "s",
        rating[1] / rating[0],
        "rating a tenth of the events",
    )


def _roll_up(ledger: Engine) -> None:
    with writing(ledger) as connection:
        roll_up(connection)
    with ledger.connect().execution_options(isolation_level="AUTOCOMMIT") as vacuum:
        vacuum.exec_driver_sql("VACUUM ANALYZE")


def _group(ledger: Engine, day: date) -> None:
    sums = day_sums(usage_events, day).subquery()
    with reading(ledger) as connection:
        connection.scalar(sa.select(sa.func.count()).select_from(sums))


def _close(url: str, day: date) -> tuple[float, float, int, float]:
    """Seconds of rating and of closing, lines, and the most memory that this process had, in MB."""
    ledger = open_ledger(url, ZONE_NAME)
    with writing(ledger) as connection:
        tariff = sync_prices(connection, Tariff((LISTED,)))
    rated = seconds_of(_rate, ledger, day, tariff)
    now = day_interval(day, ZONE).end
    started = time.perf_counter()
    with writing(ledger) as connection:
        closing = close_day(connection, day, tariff, ZONE, now=now)
    seconds = time.perf_counter() - started
    ledger.dispose()
    return rated, seconds, closing.lines, peak_megabytes()


def peak_megabytes() -> float:
    """The most memory that this process had; what `getrusage` tells begins with its parent's."""
    [peak] = [line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line]
    return int(peak.split()[1]) / 1024


def _rate(ledger: Engine, day: date, tariff: Tariff) -> None:
    """Rate the day and throw the draft away."""
    with ledger.connect() as connection, connection.begin() as transaction:
        rate_day(connection, day, tariff)
        transaction.rollback()


def ledger_bytes(ledger: Engine) -> int:
    """The size of its database, indexes included."""
    with ledger.connect() as connection:
        return int(connection.scalar(sa.text("SELECT pg_database_size(current_database())")) or 0)
