"""Runs the DAGs of alerts and forecast by `dag.test()`, in the process that `dag_runs` has prepared."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from tallybook.airflow import DAGS_DIR
from tests.dags.dag_runs import Outcome


def schedule(name: str, environment: dict[str, str]) -> tuple[str, str, bool, int]:
    """When a DAG runs, in which zone, whether it catches up, and how many runs of it at once."""
    with _variables(environment):
        dag = _dag(name)
    return (dag.timetable.expression, str(dag.timetable.timezone), dag.catchup, dag.max_active_runs)


def run(
    name: str,
    environment: dict[str, str],
    conf: dict[str, Any] | None = None,
    logical_date: datetime | None = None,
) -> Outcome:
    """Run a DAG once with these settings, without retries."""
    with _variables(environment):
        dag = _dag(name)
        for task in dag.tasks:
            task.retries, task.retry_delay = 0, timedelta(0)
        log = Path(os.environ["AIRFLOW_HOME"]) / "log.txt"
        logged = log.stat().st_size
        ended = dag.test(run_conf=conf, logical_date=logical_date)
        sys.stdout.flush()
    instances = ended.get_task_instances()
    return Outcome(
        str(ended.state),
        {ti.task_id: str(ti.state) for ti in instances},
        {ti.task_id: ti.try_number for ti in instances},
        log.read_bytes()[logged:].decode(),
    )


@contextmanager
def _variables(environment: dict[str, str]) -> Iterator[None]:
    """These settings, and none of them afterwards: the process runs other tests too."""
    before = dict(os.environ)
    os.environ |= environment
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _dag(name: str) -> Any:
    return runpy.run_path(str(DAGS_DIR / f"{name}.py"), run_name=name)[name]()
