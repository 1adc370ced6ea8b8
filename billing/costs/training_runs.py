"""What trainings cost, kept in the ledger: each run once, and provable."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing import chain
from billing.costs.training_events import InvalidRunError, TrainingRun, read_runs
from billing.errors import AuditError
from billing.ledger import insert
from billing.tables import training_runs

_DECIMALS = ("device_seconds", "wall_seconds", "pool_price_per_hour")
_RECORD = "training"
_ALL: sa.Select[Any] = sa.select(training_runs)


@dataclass(frozen=True)
class Import:
    """How many runs were new, how many known; and the files left alone, each with a code and a reason."""

    stored: int
    known: int
    refused: dict[str, tuple[str, str]]


def import_runs(connection: Connection, folder: Path, now: datetime | None = None) -> Import:
    """Store what the files of the folder hold and the ledger does not have yet.

    A file with anything wrong in it is left alone as a whole, to be put right and read again. What was stored
    is recorded in the audit chain.
    """
    stored: dict[str, str] = {}
    known = 0
    moment = now or datetime.now(timezone.utc)
    refused = {}
    for file in sorted(folder.glob("*.jsonl")):
        try:
            rows = [_row(run) for run in read_runs(file)]
            _refuse_reused_ids(connection, rows)
        except InvalidRunError as error:
            refused[file.name] = (error.code, str(error))
            continue
        for row in rows:
            statement = insert(connection, training_runs).values(**row, imported_at=moment)
            new = connection.scalar(statement.on_conflict_do_nothing().returning(training_runs.c.id))
            if new is None:
                known += 1
            else:
                stored[row["id"]] = row["content_sha256"].hex()
    if stored:
        chain.append(connection, _RECORD, {"content_sha256": stored, "at": moment.isoformat()}, moment)
    return Import(len(stored), known, refused)


def prove_runs(connection: Connection) -> None:
    """Prove that the runs in the ledger are those that the audit chain says were imported, unaltered.

    Raises: AuditError: a run was altered, removed or put in (code training_altered), named by its id.
    """
    told: dict[str, tuple[str, datetime | None]] = {}
    for _, kind, body in chain.records(connection):
        if kind == _RECORD:
            at = datetime.fromisoformat(body["at"]) if "at" in body else None  # older ones don't tell it
            told |= {run_id: (digest, at) for run_id, digest in body["content_sha256"].items()}
    found: dict[str, tuple[str, datetime | None]] = {}
    for run in connection.execute(_ALL):
        try:
            altered = _row(_run(run))["content_sha256"] != run.content_sha256
        except ArithmeticError:  # no number
            altered = True
        at = None if told.get(run.id, ("", None))[1] is None else run.imported_at
        found[run.id] = ("" if altered else run.content_sha256.hex(), at)
    for run_id in sorted(told.keys() | found.keys()):
        if told.get(run_id) != found.get(run_id):
            raise AuditError("training_altered", f"training {run_id} is not what was imported")


def _run(row: sa.Row[Any]) -> TrainingRun:
    values = {f.name: getattr(row, f.name) for f in fields(TrainingRun)}
    for name in _DECIMALS:
        values[name] = None if values[name] is None else Decimal(values[name])
    return TrainingRun(**values)


def _refuse_reused_ids(connection: Connection, rows: list[dict[str, Any]]) -> None:
    ids = [row["id"] for row in rows]
    known = sa.select(training_runs.c.id, training_runs.c.content_sha256).where(training_runs.c.id.in_(ids))
    kept = {row.id: row.content_sha256 for row in connection.execute(known)}
    for row in rows:
        if kept.setdefault(row["id"], row["content_sha256"]) != row["content_sha256"]:
            raise InvalidRunError("training_id_reused", f"{row['id']} is the id of another run")


def _row(run: TrainingRun) -> dict[str, Any]:
    row = asdict(run)
    for name in _DECIMALS:
        row[name] = None if row[name] is None else f"{row[name]:f}"
    said = json.dumps(row | {"time": run.time.isoformat()}, sort_keys=True)
    return row | {"content_sha256": sha256(said.encode()).digest()}
