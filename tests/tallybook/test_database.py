"""Transactions on SQLite that read another file besides."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from tallybook.database import ATTACHED, connect, writing


@pytest.mark.parametrize("name", [b"it's %20 a?b;c", b"\xff"])
def test_a_file_of_any_name_is_read_besides(tmp_path: Path, name: bytes) -> None:
    file = tmp_path / os.fsdecode(name)
    with closing(sqlite3.connect(file)) as other:
        other.executescript("CREATE TABLE numbers (number); INSERT INTO numbers VALUES (7)")
    engine = connect(f"sqlite:///{tmp_path / 'ledger.db'}")
    numbers = sa.table("numbers", schema=ATTACHED)
    for _ in range(2):
        with writing(engine, str(file)) as connection:
            assert connection.scalar(sa.select(sa.column("number")).select_from(numbers)) == 7
    engine.dispose()


def test_a_file_that_can_not_be_read_besides_is_told(tmp_path: Path) -> None:
    (tmp_path / "nonsense").write_bytes(b"x" * 5000)
    engine = connect(f"sqlite:///{tmp_path / 'ledger.db'}")
    for file in (tmp_path / "nonsense", tmp_path / "gone" / "file"):
        with pytest.raises(OSError, match=f"can't be attached: .*{file}"), writing(engine, str(file)):
            pass
    with writing(engine) as connection:
        connection.exec_driver_sql("CREATE TABLE numbers (number)")
    engine.dispose()
