"""Training-cost events reach the ledger once, as training wrote them; a bad file is named and left alone."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from billing.costs.training_events import read_runs
from billing.costs.training_runs import Import, import_runs, prove_runs
from billing.errors import AuditError
from billing.ledger import reading, writing
from billing.tables import training_runs
from tests.billing.older import chain_without
from training.cost import PoolPrice, Run, write_event

RUN = Run("reviews", "3", "cpu", 31.25, 40.301, 13_888, "training-sha256:1")


def imported(ledger: Engine, folder: Path) -> Import:
    with writing(ledger) as connection:
        return import_runs(connection, folder)


def a_record(**data: Any) -> dict[str, Any]:
    fields = {
        "model": "reviews", "model_version": "3", "device": "cpu", "device_seconds": 1, "wall_seconds": 2,
        "examples": 3, "code_version": "x", "pool_price_per_hour": "12.50", "currency": "CNY",
    }  # fmt: skip
    kept = {name: value for name, value in (fields | data).items() if value is not None}
    return {
        "specversion": "1.0", "id": "1", "source": "s", "type": "tallybook.training.v1", "subject": "reviews",
        "time": "2026-11-22T08:30:00Z", "data": kept,
    }  # fmt: skip


def test_what_training_writes_is_read_to_the_last_digit_once(ledger: Engine, tmp_path: Path) -> None:
    file = write_event(tmp_path, RUN, PoolPrice("12.50", "CNY"))
    write_event(tmp_path, RUN, None)
    assert imported(ledger, tmp_path) == Import(stored=2, known=0, refused={})
    assert imported(ledger, tmp_path) == Import(stored=0, known=2, refused={})
    [run] = read_runs(file)
    assert run.wall_seconds == Decimal("40.301")  # as it was written: no float on the way
    with reading(ledger) as connection:
        rows = connection.execute(sa.select(training_runs).order_by("pool_price_per_hour")).all()
    priced = next(row for row in rows if row.pool_price_per_hour)
    assert (priced.id, priced.pool_price_per_hour, priced.currency) == (file.stem, "12.50", "CNY")
    assert (priced.wall_seconds, priced.time) == ("40.301", run.time)
    assert {row.currency for row in rows} == {"CNY", None}


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "training_not_json"),
        (b"\n", "training_not_json"),
        (b"{", "training_not_json"),
        (b"[" * 100_000, "training_not_json"),
        (b"\xff", "training_not_json"),
        (b"[]", "training_unknown_type"),
        (json.dumps(a_record() | {"type": "tallybook.training.v2"}).encode(), "training_unknown_type"),
        (json.dumps(a_record() | {"data": []}).encode(), "training_invalid_field"),
        (json.dumps(a_record() | {"time": "2026-11-22T08:30:00"}).encode(), "training_invalid_field"),
        (json.dumps(a_record() | {"time": 1}).encode(), "training_invalid_field"),
        (json.dumps(a_record() | {"id": "a\u0000"}).encode(), "training_invalid_field"),
        *[
            (json.dumps(a_record(**data)).encode(), "training_invalid_field")
            for data in (
                {"wall_seconds": -1}, {"wall_seconds": float("nan")}, {"wall_seconds": "2"},
                {"device_seconds": float("inf")}, {"examples": True}, {"examples": 1.0}, {"model": "a b"},
                {"model": "missing", "code_version": ""}, {"pool_price_per_hour": None}, {"currency": None},
                {"pool_price_per_hour": 12.5}, {"pool_price_per_hour": "-1"}, {"currency": "XYZ"},
            )
        ],
    ],
)  # fmt: skip
def test_a_bad_file_is_named_left_alone_and_keeps_no_other_from_being_read(
    sqlite_ledger: Engine, tmp_path: Path, content: bytes, code: str
) -> None:
    good, bad = write_event(tmp_path, RUN, None), tmp_path / "bad.jsonl"
    bad.write_bytes(json.dumps(a_record()).encode() + b"\n" + content if content == b"{" else content)
    found = imported(sqlite_ledger, tmp_path)
    assert (found.stored, {name: told[0] for name, told in found.refused.items()}) == (1, {"bad.jsonl": code})
    assert bad.exists()
    assert good.exists()
    bad.write_text(json.dumps(a_record()))  # put right
    assert imported(sqlite_ledger, tmp_path) == Import(stored=1, known=1, refused={})


def test_an_id_with_other_content_is_told_and_the_first_stays(ledger: Engine, tmp_path: Path) -> None:
    (tmp_path / "1.jsonl").write_text(json.dumps(a_record()))
    imported(ledger, tmp_path)
    (tmp_path / "2.jsonl").write_text(json.dumps(a_record(pool_price_per_hour="0.01")))
    found = imported(ledger, tmp_path)
    assert found.known == 1
    assert found.refused["2.jsonl"][0] == "training_id_reused"
    with reading(ledger) as connection:
        assert connection.scalars(sa.select(training_runs.c.pool_price_per_hour)).all() == ["12.50"]


@pytest.mark.parametrize(
    "change",
    [
        training_runs.update().values(pool_price_per_hour="0.01"),
        training_runs.update().values(wall_seconds="40.302"),
        training_runs.update().values(wall_seconds="forty"),
        training_runs.update().values(time=datetime(2026, 1, 1, tzinfo=timezone.utc)),
        training_runs.update().values(content_sha256=b"1", model="other"),
        training_runs.update().values(content_sha256=b"1"),
        training_runs.update().values(imported_at=datetime(2026, 1, 1, tzinfo=timezone.utc)),
        training_runs.update().values(id="2"),
        training_runs.delete(),
    ],
)
def test_a_run_that_was_altered_after_its_import_is_found(
    sqlite_ledger: Engine, tmp_path: Path, change: sa.Executable
) -> None:
    write_event(tmp_path, RUN, PoolPrice("12.50", "CNY"))
    imported(sqlite_ledger, tmp_path)
    with writing(sqlite_ledger) as connection:
        prove_runs(connection)
        connection.execute(change)
        with pytest.raises(AuditError) as caught:
            prove_runs(connection)
    assert caught.value.code == "training_altered"


def test_a_run_of_which_the_chain_does_not_tell_when_it_was_imported_is_proven(
    sqlite_ledger: Engine, tmp_path: Path
) -> None:
    write_event(tmp_path, RUN, PoolPrice("12.50", "CNY"))
    imported(sqlite_ledger, tmp_path)
    with writing(sqlite_ledger) as connection:
        chain_without(connection, ["at"])
        prove_runs(connection)
        connection.execute(training_runs.update().values(wall_seconds="40.302"))
        with pytest.raises(AuditError):
            prove_runs(connection)


def test_a_folder_that_is_not_there_has_no_runs(sqlite_ledger: Engine, tmp_path: Path) -> None:
    assert imported(sqlite_ledger, tmp_path / "none") == Import(0, 0, {})
