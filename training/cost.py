"""The training-cost event of a run: what it took, as a CloudEvents 1.0 record in a file of its own."""

from __future__ import annotations

import json
import os
import re
import uuid
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from training.errors import TrainingError

EVENT_TYPE = "tallybook.training.v1"
SOURCE = "tallybook/training"
_POOL_PRICE = re.compile(r"(\d{1,9}(?:\.\d{1,12})?) ([A-Z]{3})", re.ASCII)


@dataclass(frozen=True)
class PoolPrice:
    """What the machines that a run holds cost an hour: a decimal as text, and so exact, and its currency."""

    pool_price_per_hour: str
    currency: str


@dataclass(frozen=True)
class Run:
    """What one run took. `wall_seconds`: from reading the data to the exported version, the time for which
    the machines were held; `device_seconds`: of it, the training steps alone, summed over the devices used.
    """

    model: str
    model_version: str
    device: str
    device_seconds: float
    wall_seconds: float
    examples: int
    code_version: str


def parse_pool_price(text: str) -> PoolPrice:
    """Read "12.50 CNY".

    Raises: TrainingError: `invalid_pool_price`.
    """
    match = _POOL_PRICE.fullmatch(text)
    if match is None:
        raise TrainingError(
            "invalid_pool_price", f"{text!r} is not a price an hour and its currency, such as 12.50 CNY"
        )
    return PoolPrice(*match.groups())


def make_writable(folder: Path) -> None:
    """Make the folder of the events, before minutes of work whose cost could not be written down.

    Raises: TrainingError: `training_dir_unwritable`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    if not os.access(str(folder), os.W_OK | os.X_OK):
        raise TrainingError("training_dir_unwritable", f"{folder} can't be written to")


def write_event(folder: Path, run: Run, pool_price: PoolPrice | None) -> Path:
    """Write the event of a run as folder/<id>.jsonl: a line, whole or not there; its file.

    Raises: TrainingError: `training_dir_unwritable`.
    """
    event_id = str(uuid.uuid4())
    record = {
        "specversion": "1.0",
        "id": event_id,
        "source": SOURCE,
        "type": EVENT_TYPE,
        "subject": run.model,
        "time": datetime.now(timezone.utc).isoformat(timespec="microseconds"),
        "datacontenttype": "application/json",
        "data": {**asdict(run), **(asdict(pool_price) if pool_price else {})},
    }
    file = folder / f"{event_id}.jsonl"
    beside = folder / f".{event_id}"
    try:
        with beside.open("w", encoding="utf-8") as out:
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
            out.flush()
            os.fsync(out.fileno())
        beside.rename(file)
        flush_folder(folder)
    except OSError as error:
        raise _unwritable(folder, error) from error
    return file


def flush_folder(folder: Path) -> None:
    """Put the names in a folder on disk, so that a rename outlives a power cut."""
    descriptor = os.open(str(folder), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(folder: Path, error: OSError) -> TrainingError:
    return TrainingError(
        "training_dir_unwritable",
        f"the cost of a run can't be written to {folder}: {error.strerror or error}",
    )
