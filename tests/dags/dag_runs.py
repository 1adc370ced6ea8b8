"""Reads and runs the DAG by `dag.test()`, in a process of its own: Airflow makes itself at home in one."""

from __future__ import annotations

import gc
import os
import runpy
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from tallybook.airflow import DAGS_DIR

DAG_FILE = DAGS_DIR / "daily_billing.py"
SLOW = {"billing.daily", "billing.reports.charts", "matplotlib"}


class Parsed(NamedTuple):
    """What the scheduler would see of the DAG, and what reading it has loaded."""

    downstream: dict[str, set[str]]
    params: dict[str, Any]
    schedule: Any
    time_zone: str
    catchup: bool
    max_active_runs: int
    loaded: set[str]
    assets: set[str]


class Outcome(NamedTuple):
    """How a run ended: its state, the state of each task and how often it was tried, and the whole log."""

    state: str
    tasks: dict[str, str]
    tries: dict[str, int]
    log: str


def prepare(environment: dict[str, str]) -> Parsed:
    """Make this process Airflow's, with an empty metadata database; what reading the DAG file gives."""
    os.environ |= environment
    log_file().touch()
    os.dup2(os.open(log_file(), os.O_WRONLY | os.O_APPEND), sys.stdout.fileno())
    before = set(sys.modules)
    dag = _dag()
    loaded = set(sys.modules) - before
    from airflow.utils.db import initdb

    initdb()
    gc.freeze()  # all of Airflow, which stays
    return Parsed(
        {task.task_id: set(task.downstream_task_ids) for task in dag.tasks},
        {name: param.schema for name, param in dag.params.items()},
        dag.timetable.timetable.expression,
        str(dag.timetable.timetable.timezone),
        dag.catchup,
        dag.max_active_runs,
        loaded,
        {asset.name for asset in dag.timetable.asset_condition.objects},
    )


def run(
    environment: dict[str, str],
    conf: dict[str, Any] | None = None,
    logical_date: datetime | None = None,
    retries: int = 0,
) -> Outcome:
    """Run the DAG once with these settings; a retry follows at once."""
    os.environ |= environment
    dag = _dag()
    for task in dag.tasks:
        task.retries, task.retry_delay = retries, timedelta(0)
    logged = log_file().stat().st_size
    ended = dag.test(run_conf=conf, logical_date=logical_date)
    sys.stdout.flush()
    instances = ended.get_task_instances()
    return Outcome(
        str(ended.state),
        {ti.task_id: str(ti.state) for ti in instances},
        {ti.task_id: ti.try_number for ti in instances},
        log_file().read_bytes()[logged:].decode(),
    )


def intervals(
    environment: dict[str, str], first: datetime, last: datetime
) -> list[tuple[datetime, datetime]]:
    """The data intervals that the scheduler would run the DAG for, one after the other."""
    os.environ |= environment
    from airflow.sdk import timezone
    from airflow.serialization.encoders import coerce_to_core_timetable
    from airflow.timetables.base import TimeRestriction

    timetable = coerce_to_core_timetable(_dag().timetable)
    between = TimeRestriction(timezone.coerce_datetime(first), timezone.coerce_datetime(last), catchup=True)
    found: list[Any] = []
    while info := timetable.next_dagrun_info(
        last_automated_data_interval=found[-1] if found else None, restriction=between
    ):
        found.append(info.data_interval)
    return [(interval.start, interval.end) for interval in found]


def log_file() -> Path:
    """What tasks have written."""
    return Path(os.environ["AIRFLOW_HOME"]) / "log.txt"


def _dag() -> Any:
    # Anew each time: `dag.test` keeps the configuration of one run in the object for the next.
    return runpy.run_path(str(DAG_FILE), run_name="daily_billing")["daily_billing"]()
