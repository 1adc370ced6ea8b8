"""A new version: train → evaluate → gate → stage → canary → compare → promote, or roll back.

Every Sunday once it is unpaused, or by hand; `version` releases an export that is there already:
`airflow dags trigger train_and_release --conf '{"model": "review-sentiment", "share": "10", "hours": 6}'`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any

from airflow.sdk import CronDataIntervalTimetable, Param, PokeReturnValue, dag, task
from airflow.sdk.exceptions import AirflowFailException

from billing.settings import BillingSettings
from billing.workflow import DEFAULTS, told
from tallybook import release_steps
from tallybook.usage import NAME

log = logging.getLogger("tallybook.dags")

PARAMS = {
    "model": Param(
        "review-sentiment", type="string", pattern=rf"^{NAME.pattern}(?!\n)$", description="Which model."
    ),
    "version": Param(
        None,
        type=["null", "integer"],
        minimum=1,
        description="Release this version. Empty: train the next one.",
    ),
    "train": Param(
        [], type="array", items={"type": "string"}, description="Further arguments of `tallybook train`."
    ),
    "share": Param("5", type="string", description="The canary's share of the users, in percent."),
    "requests": Param(
        200, type="integer", minimum=1, description="Requests that each side needs to be compared."
    ),
    "hours": Param(
        24, type="number", minimum=0, description="How long to wait for them; then it is rolled back."
    ),
}


@dag(
    schedule=CronDataIntervalTimetable("0 3 * * 0", timezone=BillingSettings().time_zone),
    catchup=False,
    is_paused_upon_creation=True,  # training takes hours of machines that somebody pays for
    max_active_runs=1,
    params=PARAMS,
    # A step taken twice may go back twice: a person looks at one that failed, and the canary stays as it is.
    default_args=DEFAULTS | {"retries": 0},
    doc_md=__doc__,
    tags=["training"],
)
def train_and_release() -> None:
    """Each step is a command of `tallybook`, which holds its rules."""

    @task
    def adopt(**context: Any) -> None:
        with _step():
            release_steps.adopt(context["params"]["model"])

    @task
    def train(**context: Any) -> str:
        with _step():
            params = context["params"]
            return release_steps.train(params["model"], params["version"], params["train"])

    @task
    def evaluate(folder: str) -> None:
        with _step():
            log.info("%s", release_steps.evaluation(folder))

    @task.short_circuit
    def gate(folder: str) -> bool:
        with _step():
            verdict = release_steps.gate(folder)
        log.info("%s: %s", "passed" if verdict.passed else "refused", verdict.reason)
        return verdict.passed

    @task
    def stage(folder: str, **context: Any) -> int:
        with _step():
            return release_steps.stage(context["params"]["model"], folder)

    @task
    def canary(version: int, **context: Any) -> str:
        with _step():
            release_steps.canary(context["params"]["model"], version, context["params"]["share"])
        return datetime.now(timezone.utc).isoformat(timespec="seconds")

    @task.sensor(poke_interval=300, timeout=timedelta(days=30).total_seconds(), mode="reschedule", retries=3)
    def compare(version: int, since: str, **context: Any) -> PokeReturnValue:
        from billing import daily

        params = context["params"]
        with told():
            daily.ingest(BillingSettings())
        with _step():
            verdict = release_steps.compare(params["model"], version, since, params["requests"])
        log.info("%s", verdict.reason)
        waited = datetime.now(timezone.utc) - datetime.fromisoformat(since)
        done = verdict.passed is not None or waited >= timedelta(hours=params["hours"])
        return PokeReturnValue(done, "promote" if verdict.passed else "roll_back")

    @task.branch
    def decide(outcome: str) -> str:
        return outcome

    @task
    def promote(**context: Any) -> None:
        with _step():
            release_steps.promote(context["params"]["model"])

    @task
    def roll_back(**context: Any) -> None:
        with _step():
            release_steps.roll_back(context["params"]["model"])

    folder: Any = train()  # at run time what it returned, as below
    version: Any = stage(folder)
    since: Any = canary(version)
    outcome: Any = compare(version, since)
    adopt() >> folder >> evaluate(folder) >> gate(folder) >> version
    decide(outcome) >> [promote(), roll_back()]


@contextmanager
def _step() -> Iterator[None]:
    """Tell a step's error with its code."""
    try:
        yield
    except release_steps.StepError as error:
        raise AirflowFailException(f"{error.code}: {error}") from error


train_and_release()
