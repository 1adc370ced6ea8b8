"""Real ledgers for the tests of billing: SQLite in a file, and PostgreSQL on a server of our own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from billing.day_sums import sum_days
from billing.ledger import open_ledger, reading, writing
from billing.simulation.history import simulate
from billing.simulation.world import make_world
from tests.billing.generated_month import bill_november
from tests.postgres import administrator, forgetful_server

TIME_ZONE = "Asia/Shanghai"
SIMULATED_LAST = date(2026, 9, 30)
FIVE_MONTHS = make_world(SIMULATED_LAST, days=150, users=100, requests=4.0, seed=7)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Path]:
    """A running server."""
    with forgetful_server() as folder:
        yield folder


@contextmanager
def new_database(server: Path, like: str = "template1") -> Iterator[str]:
    """The SQLAlchemy URL of a database of its own, dropped after the block."""
    name = f"test_{uuid4().hex}"
    with administrator(server) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{like}"')
    yield f"postgresql+psycopg://postgres@/{name}?host={server}"
    with administrator(server) as connection:
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@contextmanager
def copy_of(url: str, folder: Path) -> Iterator[str]:
    """The URL of a copy, gone after the block, of a ledger that nobody has open; on SQLite in this folder."""
    original = sa.make_url(url)
    if original.get_backend_name() == "sqlite":
        yield f"sqlite:///{shutil.copyfile(str(original.database), folder / 'ledger.db')}"
    else:
        with new_database(Path(str(original.query["host"])), like=str(original.database)) as copied:
            yield copied


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of an empty ledger, to copy: its migrations run once."""
    url = f"sqlite:///{tmp_path_factory.mktemp('template') / 'ledger.db'}"
    open_ledger(url, TIME_ZONE).dispose()
    return url


@pytest.fixture(scope="session")
def postgresql_template(postgres_server: Path) -> Iterator[str]:
    """The URL of an empty ledger, to copy: its migrations run once."""
    with new_database(postgres_server) as url:
        open_ledger(url, TIME_ZONE).dispose()
        yield url


@pytest.fixture
def sqlite_url(sqlite_template: str, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty ledger on SQLite."""
    with copy_of(sqlite_template, tmp_path) as url:
        yield url


@pytest.fixture
def postgres_url(postgresql_template: str, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty ledger on PostgreSQL."""
    with copy_of(postgresql_template, tmp_path) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty ledger, once on SQLite and once on PostgreSQL."""
    url: str = request.getfixturevalue({"sqlite": "sqlite_url", "postgresql": "postgres_url"}[request.param])
    return url


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Engine]:
    """An open, empty ledger with its days in Asia/Shanghai, on SQLite and on PostgreSQL."""
    engine = forgetful(open_ledger(ledger_url, TIME_ZONE))
    yield engine
    engine.dispose()


@pytest.fixture
def sqlite_ledger(sqlite_url: str) -> Iterator[Engine]:
    """An open, empty ledger on SQLite, for tests whose subject is not the database."""
    engine = forgetful(open_ledger(sqlite_url, TIME_ZONE))
    yield engine
    engine.dispose()


def forgetful(ledger: Engine) -> Engine:
    """The ledger, no longer waiting for the disk: when the machine stops, so have the tests."""
    if ledger.dialect.name == "sqlite":

        @sa.event.listens_for(ledger, "connect")
        def _do_not_wait(connection: Any, _record: object) -> None:
            connection.execute("PRAGMA synchronous = OFF")

        ledger.dispose()  # the connections that wait
    return ledger


@pytest.fixture(scope="session")
def november_ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A ledger on SQLite with a generated November, brought there as in production. Only to be read."""
    folder = tmp_path_factory.mktemp("november")
    engine = forgetful(open_ledger(f"sqlite:///{folder / 'ledger.db'}", TIME_ZONE))
    bill_november(engine, folder / "journal")
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def five_months(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A ledger on SQLite with five simulated months, summed by day. Only to be read.

    Its last day is SIMULATED_LAST; what was planted is in `FIVE_MONTHS.surges`.
    """
    folder = tmp_path_factory.mktemp("five-months")
    engine = forgetful(open_ledger(f"sqlite:///{folder / 'ledger.db'}", TIME_ZONE))
    simulate(engine, FIVE_MONTHS, folder, ZoneInfo(TIME_ZONE))
    with writing(engine) as connection:
        sum_days(connection, FIVE_MONTHS.first_day, SIMULATED_LAST)
    yield engine
    engine.dispose()


@pytest.fixture
def november(november_ledger: Engine) -> Iterator[Connection]:
    """The generated November, to be read."""
    with reading(november_ledger) as connection:
        yield connection
