"""`tallybook airflow`: a whole Airflow with our DAGs on this machine, by schedule, command line and REST."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import click

from tallybook.airflow import DAGS_DIR, AirflowError, EmbeddedAirflow, environment
from tallybook.processes import ProcessFailedError

_FOLDER = click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("var/airflow"),
    show_default=True,
    help="Airflow's own database and logs.",
)
_START_SECONDS = 180


@click.group()
def airflow() -> None:
    """Run Airflow with our DAGs on this machine, and ask it things."""


@airflow.command()
@_FOLDER
@click.option("--port", default=8080, show_default=True, help="Of the pages and the REST API, on 127.0.0.1.")
def up(folder: Path, port: int) -> None:
    """Start Airflow: API server, DAG processor and scheduler, until stopped.

    DAGs run by their schedule, by `tallybook airflow do`, and by REST. Whoever reaches the port is an
    administrator, so it is open on this machine only; for more, see docker/.
    """
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    try:
        with EmbeddedAirflow(folder, scheduled=True, port=port) as running:
            click.echo(f"Starting Airflow; logs in {running.home / 'logs'}")
            for dag in sorted(file.stem for file in DAGS_DIR.glob("*.py")):
                running.wait_until_ready(dag, _START_SECONDS, stopped.is_set)
                click.echo(f"  {dag}")
            click.echo(f"Ready: http://127.0.0.1:{port}; Ctrl-C ends it.")
            while not stopped.wait(1):
                running.check()
    except (AirflowError, ProcessFailedError) as error:
        if not stopped.is_set():
            raise click.ClickException(f"airflow_failed: {error}") from error


@airflow.command("do", context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False), default=Path("var/airflow"))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, required=True)
def do(folder: Path, arguments: tuple[str, ...]) -> None:
    """Give this Airflow any of its own commands.

    \b
    tallybook airflow do dags trigger daily_billing --conf '{"day": "2026-11-22"}'
    tallybook airflow do backfill create --dag-id daily_billing --from-date 2026-11-01 --to-date 2026-11-08
    """
    if not (folder / "airflow.db").exists():
        raise click.ClickException(f"airflow_missing: there is no Airflow in {folder}; tallybook airflow up")
    command = [sys.executable, "-m", "airflow", *arguments]
    variables = environment(folder, port=8080, scheduled=True)  # commands use its database, not its port
    sys.exit(subprocess.run(command, env={**os.environ, **variables}, check=False).returncode)
