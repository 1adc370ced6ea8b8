"""Runs the DAG train_and_release by `dag.test()`, in the process of `tests.dags.dag_runs`."""

from __future__ import annotations

import os
import runpy
import sys
from typing import Any

from tallybook.airflow import DAGS_DIR
from tests.dags import dag_runs

NAME = "train_and_release"


def structure() -> tuple[dict[str, set[str]], dict[str, Any]]:
    """The tasks after each task, and the schema of each parameter."""
    dag = _dag()
    return (
        {task.task_id: set(task.downstream_task_ids) for task in dag.tasks},
        {name: param.schema for name, param in dag.params.items()},
    )


def run(environment: dict[str, str], conf: dict[str, Any]) -> dag_runs.Outcome:
    """Run it once with these settings, without retries."""
    os.environ |= environment
    dag = _dag()
    for task in dag.tasks:
        task.retries = 0
    logged = dag_runs.log_file().stat().st_size
    ended = dag.test(run_conf=conf)
    sys.stdout.flush()
    instances = ended.get_task_instances()
    return dag_runs.Outcome(
        str(ended.state),
        {ti.task_id: str(ti.state) for ti in instances},
        {ti.task_id: ti.try_number for ti in instances},
        dag_runs.log_file().read_bytes()[logged:].decode(),
    )


def _dag() -> Any:
    return runpy.run_path(str(DAGS_DIR / f"{NAME}.py"), run_name=NAME)[NAME]()
