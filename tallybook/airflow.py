"""A real Airflow on embedded defaults: SQLite and logs in one folder, reached from this machine only.

It is what `airflow standalone` runs, less the triggerer, which our DAGs don't need, and less the process
around them: half the time to start, and half a gigabyte less.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from tallybook.processes import Processes, free_port
from tallybook.settings import CommonSettings

DAGS_DIR = Path(__file__).resolve().parent.parent / "dags"
FINAL = {"success", "failed"}
ERRORS = {"error", "critical"}
TRIES = 5  # to trigger a run
_HOST = "127.0.0.1"
# Airflow reads it as it starts. The API server and the DAG processor don't run tasks.
_LOCAL_SETTINGS = 'import sys\n\nif "scheduler" in sys.argv:\n    import tallybook.airflow_preload\n'
# Ended backwards, so that a task in flight can still tell the API server how it went.
_COMPONENTS = {
    "api-server": ["api-server"],
    "dag-processor": ["dag-processor"],
    "scheduler": ["scheduler", "--skip-serve-logs"],
}


class AirflowError(Exception):
    """Airflow can't read a DAG, refuses a request (then with its HTTP status), or takes too long."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def environment(
    home: Path, port: int, *, dags_dir: Path = DAGS_DIR, scheduled: bool = False
) -> dict[str, str]:
    """The variables that make any `airflow` command use this folder and port, and our DAGs.

    With `scheduled`, runs start by schedule too; without, only when triggered.
    """
    home = home.absolute()
    return {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC": f"sqlite+aiosqlite:///{home / 'airflow.db'}",
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags_dir),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DEFAULT_TIMEZONE": CommonSettings().time_zone,
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "4",  # the default of 32 costs a gigabyte
        # Whoever reaches this port is an administrator, so it listens on the loopback address only.
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__API__HOST": _HOST,
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": f"http://{_HOST}:{port}",  # where tasks report to
        "AIRFLOW__API__WORKERS": "1",
        # Nobody changes the DAGs of a running Airflow: it need not read them every half a minute.
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "300",
        "AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": str(scheduled),
        "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.5",
        # How long a worker may take to see that its task has ended.
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
        "NO_PROXY": ",".join(filter(None, [os.environ.get("NO_PROXY"), _HOST])),
    }


class EmbeddedAirflow:
    """Airflow's API server, DAG processor and scheduler as child processes; leaving the block ends them.

    Their output is in `<home>/logs/<component>.log`.
    """

    def __init__(
        self, home: Path, *, dags_dir: Path = DAGS_DIR, scheduled: bool = False, port: int | None = None
    ) -> None:
        self.home = home.absolute()
        self.port = port or free_port()
        self.environment = environment(self.home, self.port, dags_dir=dags_dir, scheduled=scheduled)
        self.environment["AIRFLOW__API_AUTH__JWT_SECRET"] = secrets.token_urlsafe(64)
        self._processes = Processes()
        self._started_at = datetime.now(timezone.utc)
        self._token: str | None = None

    def __enter__(self) -> EmbeddedAirflow:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Bring the metadata up to date and start the components; `wait_until_ready` waits for them.

        Raises: AirflowError: the metadata can't be brought up to date.
        """
        logs = self.home / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        (self.home / "config").mkdir(exist_ok=True)
        (self.home / "config" / "airflow_local_settings.py").write_text(_LOCAL_SETTINGS)
        migrated = subprocess.run(
            [sys.executable, "-m", "airflow", "db", "migrate"],
            env={**os.environ, **self.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        (logs / "db-migrate.log").write_bytes(migrated.stdout)
        if migrated.returncode != 0:
            raise AirflowError(f"airflow db migrate failed; see {logs / 'db-migrate.log'}")
        self._started_at = datetime.now(timezone.utc)
        for name, command in _COMPONENTS.items():
            self._processes.start(
                f"airflow {name}", command, self.environment, log=logs / f"{name}.log", module="airflow"
            )

    def stop(self) -> None:
        """End the components: tasks in flight first, and nothing stays behind."""
        self._processes.stop()

    def check(self) -> None:
        """Raises: ProcessFailedError: a component has ended."""
        self._processes.check()

    def wait_until_ready(
        self, dag_id: str, timeout_seconds: float = 120, given_up: Callable[[], bool] = lambda: False
    ) -> None:
        """Wait until a triggered run of this DAG would start, and from today's DAG file.

        Raises: AirflowError: the DAG can't be imported, or the wait was given up. ProcessFailedError: a
            component has ended.
        """

        def ready() -> bool:
            if given_up():
                raise AirflowError("stopped while starting")
            return self._is_ready(dag_id)

        self._processes.wait_until(ready, timeout_seconds)

    def trigger(self, dag_id: str, conf: Mapping[str, Any]) -> str:
        """Start a run with this configuration; its id.

        Raises: AirflowError: there is no such DAG, or its parameters forbid this.
        """
        run_id = f"manual__{uuid4()}"
        run = {"dag_run_id": run_id, "logical_date": None, "conf": dict(conf)}
        for attempt in range(1, TRIES + 1):
            try:
                self.call("POST", f"/api/v2/dags/{dag_id}/dagRuns", run)
                break
            except AirflowError as error:
                if error.status == HTTPStatus.CONFLICT:  # an attempt that failed has made it after all
                    break
                # On SQLite two requests to the API server may lock each other out; one of them then fails.
                if error.status != HTTPStatus.INTERNAL_SERVER_ERROR or attempt == TRIES:
                    raise
        return run_id

    def wait(
        self,
        dag_id: str,
        run_id: str,
        on_change: Callable[[str, str], None] = lambda task_id, state: None,
        timeout_seconds: float = 600,
    ) -> str:
        """Wait for the end of a run: `success` or `failed`. Each new state of a task is told to `on_change`.

        Raises: AirflowError: it takes longer. ProcessFailedError: a component has ended.
        """
        path = f"/api/v2/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}"
        deadline = time.monotonic() + timeout_seconds
        known: dict[str, str | None] = {}
        while True:
            self._processes.check()
            state = str(self.call("GET", path)["state"])
            for task in self.call("GET", f"{path}/taskInstances")["task_instances"]:
                if task["state"] != known.get(task["task_id"]):
                    known[task["task_id"]] = task["state"]
                    on_change(task["task_id"], task["state"])
            if state in FINAL:
                return state
            if time.monotonic() > deadline:
                raise AirflowError(f"{run_id} is still {state} after {timeout_seconds:.0f} s: {known}")
            time.sleep(1)

    def runs(self, dag_id: str) -> list[tuple[str, str, str]]:
        """The runs of a DAG, oldest first: id, how it was started (`run_type`), state."""
        found = self.call("GET", f"/api/v2/dags/{dag_id}/dagRuns?order_by=run_after")["dag_runs"]
        return [(run["dag_run_id"], run["run_type"], run["state"]) for run in found]

    def errors(self, dag_id: str, run_id: str) -> list[str]:
        """What the tasks of a run logged as errors, oldest first, each as `task: message`."""
        logs = self.home / "logs" / f"dag_id={dag_id}" / f"run_id={run_id}"
        found = []
        for log in sorted(logs.glob("task_id=*/attempt=*.log"), key=lambda file: file.stat().st_mtime):
            task = log.parent.name.removeprefix("task_id=")
            entries = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
            found += [f"{task}: {_message(entry)}" for entry in entries if entry["level"] in ERRORS]
        return found

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """What Airflow's REST API answers. Raises: AirflowError: it refuses; OSError: it can't be reached."""
        headers = {"Content-Type": "application/json"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        connection = http.client.HTTPConnection(_HOST, self.port, timeout=60)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        if response.status >= 400:
            told = content.decode("utf-8", "replace")
            raise AirflowError(f"{method} {path}: {response.status} {told}", response.status)
        return json.loads(content)

    def _is_ready(self, dag_id: str) -> bool:
        try:
            health = self.call("GET", "/api/v2/monitor/health")
        except (OSError, http.client.HTTPException):
            return False  # the API server does not listen yet
        if {health[part]["status"] for part in ("metadatabase", "scheduler", "dag_processor")} != {"healthy"}:
            return False
        if self._token is None:
            self._token = str(self.call("GET", "/auth/token")["access_token"])
        for broken in self.call("GET", "/api/v2/importErrors")["import_errors"]:
            if self._is_news(broken["timestamp"]):
                raise AirflowError(f"{broken['filename']} can't be imported:\n{broken['stack_trace']}")
        dags = self.call("GET", f"/api/v2/dags?dag_id_pattern={dag_id}")["dags"]
        return any(dag["dag_id"] == dag_id and self._is_news(dag["last_parsed_time"]) for dag in dags)

    def _is_news(self, time: str) -> bool:
        return datetime.fromisoformat(time.replace("Z", "+00:00")) >= self._started_at


def _message(entry: Mapping[str, Any]) -> str:
    """What a log entry says: the exception, where there is one."""
    for raised in entry.get("error_detail", []):  # the last one first, then its causes
        return f"{raised['exc_type']}: {raised['exc_value']}"
    return str(entry["event"])
