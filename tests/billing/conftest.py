"""Real ledgers for the tests of billing: SQLite in a file, and PostgreSQL on a server of our own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy.engine import Connection, Engine

from billing.ledger import open_ledger, reading
from tests.billing.generated_month import bill_november
from tests.postgres import administrator, running_server

TIME_ZONE = "Asia/Shanghai"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Path]:
    """A running server; what it holds may be lost when the machine stops."""
    with running_server("-c", "fsync=off") as folder:
        yield folder


@pytest.fixture
def postgres_url(postgres_server: Path) -> Iterator[str]:
    """The SQLAlchemy URL of a fresh, empty database, dropped after the test."""
    name = f"test_{uuid4().hex}"
    with administrator(postgres_server) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    yield f"postgresql+psycopg://postgres@/{name}?host={postgres_server}"
    with administrator(postgres_server) as connection:
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty ledger, once on SQLite and once on PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Engine]:
    """An open, empty ledger with its days in Asia/Shanghai, on SQLite and on PostgreSQL."""
    engine = open_ledger(ledger_url, TIME_ZONE)
    yield engine
    engine.dispose()


@pytest.fixture
def sqlite_ledger(tmp_path: Path) -> Iterator[Engine]:
    """An open, empty ledger on SQLite, for tests whose subject is not the database."""
    engine = open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}", TIME_ZONE)
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def november_ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A ledger on SQLite with a generated November, brought there as in production. Only to be read."""
    folder = tmp_path_factory.mktemp("november")
    engine = open_ledger(f"sqlite:///{folder / 'ledger.db'}", TIME_ZONE)
    bill_november(engine, folder / "journal")
    yield engine
    engine.dispose()


@pytest.fixture
def november(november_ledger: Engine) -> Iterator[Connection]:
    """The generated November, to be read."""
    with reading(november_ledger) as connection:
        yield connection
