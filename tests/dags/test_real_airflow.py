"""A real Airflow bills days that are triggered on the command line and by REST, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from email import message_from_bytes
from pathlib import Path

import pytest

from tallybook.airflow import AirflowError, EmbeddedAirflow

DAG = "daily_billing"
BY_COMMAND, BY_REST, NEVER = date(2026, 11, 18), date(2026, 11, 19), date(2199, 1, 1)


def trigger_by_command(airflow: EmbeddedAirflow, conf: dict[str, object]) -> str:
    """As an operator would in a shell; the id of the run."""
    command = [sys.executable, "-m", "airflow", "dags", "trigger", DAG, "--conf", json.dumps(conf)]
    environment = {**os.environ, **airflow.environment}
    told = subprocess.run(
        [*command, "--output", "json"], env=environment, check=True, capture_output=True, text=True
    )
    run: str = json.loads(told.stdout[told.stdout.index("[{") :])[0]["dag_run_id"]
    return run


def processes_of(home: Path) -> list[str]:
    """Command lines of the processes that write to the logs in this folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "fd" / "1").readlink().is_relative_to(home):
                found.append((process / "cmdline").read_text())
        except OSError:  # not ours, or gone by now
            continue
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_two_days_are_billed_by_command_and_by_rest_and_nothing_stays_behind(
    tmp_path: Path,
    settings: dict[str, str],
    use: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    use(BY_COMMAND, "user-a")
    use(BY_REST, "user-b")
    seen: list[tuple[str, str]] = []

    with EmbeddedAirflow(tmp_path / "airflow") as airflow:
        airflow.wait_until_ready(DAG)
        first = trigger_by_command(airflow, {"day": str(BY_COMMAND), "user": None})
        second = airflow.trigger(DAG, {"day": str(BY_REST), "user": None})
        third = airflow.trigger(DAG, {"day": str(NEVER)})
        with pytest.raises(AirflowError, match=r": 400 .*'yesterday' is not a 'date'"):
            airflow.trigger(DAG, {"day": "yesterday"})
        ended = [
            airflow.wait(DAG, run, lambda *change: seen.append(change)) for run in (first, second, third)
        ]
        assert len(processes_of(airflow.home)) >= 3

    assert ended == ["success", "success", "failed"], [airflow.errors(DAG, run) for run in (first, second)]
    assert ("mail", "success") in seen
    refused = f"rate: AirflowFailException: day_in_future: {NEVER} has not begun"
    assert airflow.errors(DAG, third) == [refused]
    assert processes_of(airflow.home) == []
    subjects = [message_from_bytes(m.read_bytes())["Subject"] for m in (tmp_path / "outbox").glob("*.eml")]
    failures = [
        subject for subject in subjects if subject.startswith("[Tallybook] daily_billing failed in rate")
    ]
    assert (len(subjects), len(failures)) == (3, 1)  # two bills, and the operator is told
