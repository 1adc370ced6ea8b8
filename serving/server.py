"""Runs the API in Granian: its worker processes, their threads, and how they begin and end."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import util
from pathlib import Path
from typing import TYPE_CHECKING

from granian import Granian
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.log import LogLevels

from serving import logs
from serving.settings import METRICS_FOLDER_VARIABLE, ServingSettings

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized

    from flask import Flask

_SPARE_THREADS = 8  # they answer probes, and refuse what is too much, while all places wait for the model
_CONNECTIONS = 1024  # open ones of a worker; idle ones count, so this is no limit on requests
_HEADERS_BYTES = 64 * 1024
_HEADERS_MILLISECONDS = 15_000
_KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}  # seconds, seconds, probes
_KILL_SPARE_SECONDS = 5  # a worker that has not ended so long after its last deadline is killed
_PR_SET_PDEATHSIG = 1


def serve(settings: ServingSettings, make_app: Callable[[ServingSettings], Flask] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then answer the requests under way and return.

    Args:
        make_app: called in each worker; `serving.app.create_app` if there is none.
    Raises: OSError: the address can't be had.
    """
    _check_address(settings.host, settings.port)
    logs.configure()
    with _metrics_folder(settings.workers):
        started: Synchronized[int] = multiprocessing.Value("i", 0)
        Granian(
            "tallybook-api",
            address=settings.host,
            port=settings.port,
            interface=Interfaces.WSGI,
            workers=settings.workers,
            blocking_threads=settings.threads + _SPARE_THREADS,
            backpressure=_CONNECTIONS,
            http=HTTPModes.http1,
            http1_settings=HTTP1Settings(
                header_read_timeout=_HEADERS_MILLISECONDS, max_buffer_size=_HEADERS_BYTES
            ),
            respawn_failed_workers=True,
            workers_kill_timeout=int(settings.deadline_seconds) + _KILL_SPARE_SECONDS,
            log_level=LogLevels.error,
            log_dictconfig={"loggers": {"_granian": {"propagate": True}}},
        ).serve(
            target_loader=partial(_load, settings, make_app or _make_app, started, os.getpid()),
            wrap_loader=False,
        )


def _make_app(settings: ServingSettings) -> Flask:
    # Here and not on top: the parent forks, and what this imports should not be forked.
    from serving.app import SERVICES, create_app

    app = create_app(settings)
    util.Finalize(None, app.extensions[SERVICES].close, exitpriority=1)  # atexit is not run in workers
    return app


def _load(
    settings: ServingSettings,
    make_app: Callable[[ServingSettings], Flask],
    started: Synchronized[int],
    parent: int,
) -> Flask:
    """Make the application, in the worker process."""
    # Granian's handlers come after this; the parent's, inherited, would swallow a SIGTERM.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _die_with(parent)
    logs.configure()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one text at a time, in many threads
    app = make_app(settings)
    threading.Thread(target=_announce, args=(settings, started), daemon=True).start()
    return app


def _announce(settings: ServingSettings, started: Synchronized[int]) -> None:
    """Once this worker listens, have its connections probed; the last worker prints the ready line."""
    while not (listeners := _listeners(settings.port)):
        time.sleep(0.005)
    for listener in listeners:
        with listener:
            _probe_peers(listener)
    with started.get_lock():
        started.value += 1
        everyone = started.value == settings.workers
    if everyone:
        workers = "1 worker" if settings.workers == 1 else f"{settings.workers} workers"
        print(  # noqa: T201 -- the one line that a person or a script waits for
            f"API listening on http://{settings.host}:{settings.port}: {workers}, "
            f"model server {settings.model_server_address}, journal {settings.journal_dir}",
            flush=True,
        )


def _listeners(port: int) -> list[socket.socket]:
    """Duplicates of the sockets on which this process listens at the port; Granian does not show them."""
    found = []
    for descriptor in Path("/dev/fd").iterdir():
        try:
            candidate = socket.fromfd(int(descriptor.name), socket.AF_INET, socket.SOCK_STREAM)
        except OSError:  # the folder's own descriptor is closed by now
            continue
        if _listens_at(candidate, port):
            found.append(candidate)
        else:
            candidate.close()
    return found


def _listens_at(candidate: socket.socket, port: int) -> bool:
    try:
        listens = candidate.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        return bool(listens) and candidate.getsockname()[1] == port
    except (OSError, IndexError):
        return False


def _probe_peers(listener: socket.socket) -> None:
    """Notice peers that vanished without a word, which would hold their thread for ever.

    Accepted connections inherit these options.
    """
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if (option := getattr(socket, name, None)) is not None:
            listener.setsockopt(socket.IPPROTO_TCP, option, value)


def _die_with(parent: int) -> None:
    """End when the parent is killed: an orphan would go on serving beside the parent's successor."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            sys.exit(1)


def _check_address(host: str, port: int) -> None:
    """Raises: OSError: taken, or not ours. Granian's shared port would quietly join another server on it."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    socket.create_server((host, port), family=family).close()


@contextmanager
def _metrics_folder(workers: int) -> Iterator[None]:
    """Several workers count in files, which /metrics of any of them adds up."""
    if workers == 1:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="tallybook-metrics-") as folder:
        os.environ[METRICS_FOLDER_VARIABLE] = folder
        yield
