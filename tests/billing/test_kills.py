"""Ingest and close are killed at any moment; afterwards nothing is lost and nothing is doubled."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from billing.audit import verify
from billing.ledger import open_ledger, reading
from billing.tables import bill_lines, usage_events, usage_hours
from tests.billing.factories import DAY, NOON, an_event, write_segment
from tests.postgres import administrator, running_server, wait_until_ready

KILLS = int(os.environ.get("TALLYBOOK_DRILL_KILLS", "3"))
EVENTS_A_ROUND = 4000
LAST_NOON = NOON - timedelta(days=9)  # long over, and so is the day after it
# Imports done, then the work, again and again: a kill lands in the work, not in Python's start.
WORK = """
import sys
from datetime import date
from billing import chunks, daily, reading
from billing.settings import BillingSettings
reading.WORTH_A_PROCESS_BYTES, chunks.CHUNK_BYTES = 1 << 20, 1 << 19
settings = BillingSettings()
print("ready", flush=True)
daily.ingest(settings)
for day in sys.argv[1:]:
    daily.close(settings, date.fromisoformat(day))
print("done", flush=True)
"""


@pytest.mark.parametrize("on_postgresql", [False, True], ids=["sqlite", "postgresql"])
def test_killing_ingest_and_close_loses_and_doubles_nothing(
    on_postgresql: bool, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    if on_postgresql:
        url = request.getfixturevalue("postgres_url")
    chance = random.Random(7)  # noqa: S311  # when to kill is no secret
    environment = {
        **os.environ,
        "TALLYBOOK_LEDGER_URL": url,
        "TALLYBOOK_JOURNAL_DIR": str(tmp_path / "journal"),
        "TALLYBOOK_PRICES_FILE": str(Path("prices.toml").absolute()),
    }
    days = [(DAY - timedelta(days=9 + n)).isoformat() for n in (2, 1, 0)]
    command = [sys.executable, "-c", WORK, *days]
    events = []
    killed = 0
    while killed < KILLS:
        fresh = [
            an_event(
                time=LAST_NOON - timedelta(days=chance.randrange(3)), user=f"user-{chance.randrange(50)}"
            )
            for _ in range(EVENTS_A_ROUND)
        ]
        events += fresh
        write_segment(tmp_path / "journal", fresh, name=f"{killed}.jsonl")
        worker = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"ready\n"
        time.sleep(chance.uniform(0.05, 1.2))
        if worker.poll() is None:
            worker.send_signal(signal.SIGKILL)
            killed += 1
        worker.wait()
        worker.stdout.close()

    days.append((DAY - timedelta(days=8)).isoformat())  # its bill has what came after the others were closed
    subprocess.run([sys.executable, "-c", WORK, *days], env=environment, check=True)
    ledger = open_ledger(url, "Asia/Shanghai")
    with reading(ledger) as connection:
        verify(connection)
        assert set(connection.scalars(sa.select(usage_events.c.id))) == {e.id for e in events}
        assert connection.scalar(sa.select(sa.func.sum(usage_hours.c.requests))) == len(events)
        lines = connection.scalar(sa.select(sa.func.sum(bill_lines.c.quantity_tokens)))
        assert lines == sum(e.total_tokens for e in events)
    ledger.dispose()


def test_a_restart_of_postgresql_in_mid_ingest_loses_and_doubles_nothing(tmp_path: Path) -> None:
    events = [an_event(user=f"user-{n % 50}") for n in range(2000)]
    write_segment(tmp_path / "journal", events)
    environment = {**os.environ, "TALLYBOOK_JOURNAL_DIR": str(tmp_path / "journal")}
    command = [sys.executable, "-m", "tallybook.cli", "ingest"]
    with running_server() as server:
        with administrator(server) as connection:
            connection.execute("CREATE DATABASE restarted")
        url = f"postgresql+psycopg://postgres@/restarted?host={server}"
        open_ledger(url, "Asia/Shanghai").dispose()
        environment["TALLYBOOK_LEDGER_URL"] = url
        with (
            _events_locked(server),
            subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as worker,
        ):
            backend = _wait_for_writer(server, worker)
            os.kill(backend, signal.SIGKILL)  # after which the server ends every session and recovers
            _, told = worker.communicate(timeout=60)
        assert worker.returncode == 1
        assert told.splitlines()[-1].startswith("Error: ledger_unavailable:"), told
        wait_until_ready(server)
        subprocess.run(command, env=environment, check=True)
        ledger = open_ledger(url, "Asia/Shanghai")
        with reading(ledger) as connection:
            assert set(connection.scalars(sa.select(usage_events.c.id))) == {e.id for e in events}
            assert connection.scalar(sa.select(sa.func.sum(usage_hours.c.requests))) == len(events)
            verify(connection)
        ledger.dispose()


@contextmanager
def _events_locked(server: Path) -> Iterator[None]:
    """Hold whoever stores events where it does, in the midst of its transaction."""
    holder = psycopg.connect(host=str(server), user="postgres", dbname="restarted")
    holder.execute("LOCK TABLE usage_events IN EXCLUSIVE MODE")
    yield
    holder.close()


def _wait_for_writer(server: Path, worker: subprocess.Popen[str]) -> int:
    """The server process that stores the worker's events."""
    query = "SELECT pid FROM pg_stat_activity WHERE datname = 'restarted' AND wait_event_type = 'Lock'"
    deadline = time.monotonic() + 60
    with administrator(server) as connection:
        while time.monotonic() < deadline:
            found = connection.execute(query).fetchone()
            if found:
                return int(found[0])
            assert worker.poll() is None, "it ended before it was seen"
            time.sleep(0.05)
    raise AssertionError("the worker stored nothing")
