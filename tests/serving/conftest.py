"""Fixtures for the tests of serving: real access stores, on SQLite in a file and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.postgres import administrator, forgetful_server


@pytest.fixture(scope="session")
def access_server() -> Iterator[Path]:
    """A running PostgreSQL server."""
    with forgetful_server() as folder:
        yield folder


@pytest.fixture(params=["sqlite", "postgresql"])
def access_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an access store that nobody has opened yet, once on SQLite and once on PostgreSQL."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'access.db'}"
        return
    server: Path = request.getfixturevalue("access_server")
    name = f"test_{uuid4().hex}"
    with administrator(server) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    yield f"postgresql+psycopg://postgres@/{name}?host={server}"
    with administrator(server) as connection:
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
