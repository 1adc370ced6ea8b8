"""Work on a second connection beside a transaction, so that two cores are busy at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from sqlalchemy.engine import Connection

from billing.ledger import reading

Found = TypeVar("Found")


@contextmanager
def beside(connection: Connection, work: Callable[[Connection], Found]) -> Iterator[Callable[[], Found]]:
    """Begin to read beside the caller's transaction; what is yielded waits for what it finds or raises.

    For what the caller's transaction has not changed, and lets nobody else change until it ends. On SQLite
    the work is done when it is waited for, on the caller's connection. When the block ends before that, the
    database is told to stop.
    """
    if connection.dialect.name != "postgresql":
        yield lambda: work(connection)
        return
    with ThreadPoolExecutor(1) as thread, reading(connection.engine) as other:
        running = thread.submit(work, other)
        try:
            yield running.result
        finally:
            if not running.done():
                driver: Any = other.connection.driver_connection
                driver.cancel()
                running.exception()  # it has stopped, before its connection is closed
