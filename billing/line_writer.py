"""The lines of a bill on their way into the ledger: hashed, and written while the next ones are made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import orjson
from sqlalchemy.engine import Connection

from billing.bulk import by_copy, copy_lines, insert_rows
from billing.csv_lines import csv_line
from billing.lines import COLUMNS
from billing.merkle import leaf_hash
from billing.tables import bill_lines


class LineWriter:
    """Writes rows of `bill_lines` (COLUMNS) in the caller's transaction.

    What was added last is written behind the making of the next ones, or by `flush`: nothing else may be
    done on the connection then. `leaves` has their leaf hashes, see `billing.seals`.
    """

    def __init__(self, connection: Connection) -> None:
        self.leaves: list[bytes] = []
        self._connection = connection
        self._waiting: Any = None  # lines for COPY on PostgreSQL, else rows

    def add(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Take rows; those that were added before must have been written."""
        told = [orjson.dumps(row) for row in rows]
        self.leaves += map(leaf_hash, told)
        if by_copy(self._connection):
            rows_told = zip(told, rows, strict=True)
            lines = [line[1:-1] if b"\\" not in line else csv_line(row) for line, row in rows_told]
            self._waiting = b"\n".join([*lines, b""])
        else:
            self._waiting = rows

    def flush(self) -> None:
        """Write what waits."""
        waiting, self._waiting = self._waiting, None
        if not waiting:
            return
        if isinstance(waiting, bytes):
            copy_lines(self._connection, bill_lines.name, COLUMNS, waiting)
        else:
            insert_rows(self._connection, bill_lines, COLUMNS, waiting)

    @contextmanager
    def behind(self) -> Iterator[None]:
        """Write what waits while the block makes more: on PostgreSQL beside it, else before it."""
        if not isinstance(self._waiting, bytes):
            self.flush()
            yield
            return
        waiting, self._waiting = self._waiting, None
        with ThreadPoolExecutor(1) as thread:
            writing = thread.submit(copy_lines, self._connection, bill_lines.name, COLUMNS, waiting)
            yield
            writing.result()
