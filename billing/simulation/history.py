"""A simulated history brought into a ledger the way real usage goes: journal segments, ingest, close."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, tzinfo
from hashlib import sha256
from itertools import islice
from pathlib import Path

from sqlalchemy.engine import Engine

from billing.bills import close_day
from billing.ingest import ingest
from billing.ledger import writing
from billing.prices.book import sync_prices
from billing.prices.file import read_tariff
from billing.simulation.days import day_lines
from billing.simulation.files import settings_of, write_models, write_price_files
from billing.simulation.mark import mark_simulated
from billing.simulation.world import World
from tallybook.files import write_whole
from tallybook.segments import committed

_BATCH = 5_000  # events between two markers of a segment


@dataclass(frozen=True)
class Simulated:
    """What a run has brought into the ledger, and how long it took."""

    days: int
    stored: int
    closed: int
    making_seconds: float
    storing_seconds: float
    closing_seconds: float


def simulate(
    ledger: Engine,
    world: World,
    folder: Path,
    zone: tzinfo,
    *,
    close: bool = False,
    force: bool = False,
    progress: Callable[[date], None] = lambda _: None,
) -> Simulated:
    """Bring a world's history into the ledger, a day at a time, and close each day if asked to.

    Run again, also after a crash, it adds what is missing: its segments are the same each time. `folder` gets
    the prices and budgets that closing goes by, and truth.json: the surges that were planted.
    Raises: SimulationError: see `billing.simulation.mark.mark_simulated`.
    """
    with writing(ledger) as connection:
        mark_simulated(connection, world.facts(), force=force)
    write_whole(folder / "truth.json", (json.dumps(world.truth(), indent=2) + "\n").encode())
    write_price_files(folder, world)
    write_models(folder / "models")
    tariff = read_tariff(folder / "prices.toml")
    journal = folder / "simulated-journal"
    shutil.rmtree(journal, ignore_errors=True)
    journal.mkdir(parents=True)
    # Segments are named after the world: the ledger remembers how far it has read each.
    name = sha256(json.dumps(world.facts(), sort_keys=True).encode()).hexdigest()[:12]
    making = storing = closing = 0.0
    stored = closed = 0
    for number in range(world.days):
        day = world.day(number)
        progress(day)
        began = time.perf_counter()
        segment = journal / f"simulated-{name}-{day}.jsonl"
        _write_segment(segment, world, number, zone)
        made = time.perf_counter()
        result = ingest(ledger, journal, zone)
        segment.unlink()
        kept = time.perf_counter()
        if close:
            with writing(ledger) as connection:
                kept_tariff = sync_prices(connection, tariff)
                closed += close_day(connection, day, kept_tariff, zone).newly_closed
        closing += time.perf_counter() - kept
        making, storing = making + made - began, storing + kept - made
        stored += result.stored
    journal.rmdir()
    return Simulated(world.days, stored, closed, making, storing, closing)


def write_settings(folder: Path, ledger_url: str, zone_name: str) -> Path:
    """Write folder/tallybook.toml, by which every command works on this ledger; the file."""
    file = folder / "tallybook.toml"
    write_whole(file, settings_of(folder, ledger_url, zone_name).encode())
    return file


def _write_segment(file: Path, world: World, number: int, zone: tzinfo) -> None:
    lines = day_lines(world, number, zone)
    with file.open("wb") as segment:
        while some := list(islice(lines, _BATCH)):
            segment.write(b"\n".join(some) + b"\n" + committed(len(some)))
