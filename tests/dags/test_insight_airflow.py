"""A real Airflow checks alerts by schedule and by REST, and forecasts on the command line."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from tallybook.airflow import DAGS_DIR, EmbeddedAirflow
from tallybook.calendar import today
from tests.billing.robots import running_robots
from tests.dags.conftest import ZONE

ALERTS, FORECAST = "hourly_alerts", "usage_forecast"


def scheduled_run(airflow: EmbeddedAirflow, dag_id: str) -> str:
    """The first run that the scheduler starts by itself."""
    query = "SELECT run_id FROM dag_run WHERE dag_id = ? AND run_type = 'scheduled'"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        with sqlite3.connect(airflow.home / "airflow.db", timeout=60) as metadata:
            for (run,) in metadata.execute(query, (dag_id,)):
                return str(run)
        time.sleep(0.3)
    raise AssertionError("no run was scheduled")


def trigger_by_command(airflow: EmbeddedAirflow, dag_id: str, conf: dict[str, object]) -> str:
    """As an operator would in a shell; the id of the run."""
    command = [sys.executable, "-m", "airflow", "dags", "trigger", dag_id, "--conf", json.dumps(conf)]
    environment = {**os.environ, **airflow.environment}
    told = subprocess.run(
        [*command, "--output", "json"], env=environment, check=True, capture_output=True, text=True
    )
    run: str = json.loads(told.stdout[told.stdout.index("[{") :])[0]["dag_run_id"]
    return run


def test_alerts_are_told_by_schedule_and_rest_and_the_quarter_is_forecast_by_command(
    tmp_path: Path, settings: dict[str, str], use: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    dags = tmp_path / "dags"
    dags.mkdir()
    for name in (ALERTS, FORECAST):
        shutil.copy(DAGS_DIR / f"{name}.py", dags)
    last = today(ZONE) - timedelta(days=2)
    for number in range(15):
        use(last - timedelta(days=number), "user-a")

    with running_robots() as robots:
        monkeypatch.setenv("TALLYBOOK_ALERT_CHANNELS", f'{{"ops": "wecom+{robots.url}/wecom"}}')
        with EmbeddedAirflow(tmp_path / "airflow", dags_dir=dags, scheduled=True) as airflow:
            airflow.wait_until_ready(ALERTS)
            by_schedule = scheduled_run(airflow, ALERTS)
            ended = [airflow.wait(ALERTS, by_schedule)]
            by_rest = airflow.trigger(ALERTS, {})
            by_command = trigger_by_command(airflow, FORECAST, {"day": str(last)})
            ended += [airflow.wait(ALERTS, by_rest), airflow.wait(FORECAST, by_command)]
            errors = airflow.errors(ALERTS, by_schedule) + airflow.errors(FORECAST, by_command)

    assert ended == ["success"] * 3, errors
    assert len(robots.came) == 1
    assert "days with usage are over and not closed: 15" in robots.texts()[0]
    assert (tmp_path / "reports" / "forecast" / str(last) / "forecast.csv").exists()
