"""What every DAG shares: the day that a run is about, errors with their codes, and who hears of a failure.

Files in `dags/` import it, and nothing else does: it needs Airflow. A DAG takes `DEFAULTS` as its
`default_args` and `DAY` as its parameter `day`; a task asks `day_of(context, zone)` and does its work in
`with told():`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date, datetime, timedelta, tzinfo
from typing import Any

from airflow.sdk import Asset, Param
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from billing.errors import BillingError
from tallybook.calendar import billing_day
from tallybook.usage import NAME

log = logging.getLogger("tallybook.dags")
# Of billing's errors those that end by themselves: a database or a mail server that is away comes back.
MAY_PASS = {"ledger_unavailable", "mail_not_delivered", "smtp_failed", "kafka_unavailable"}
NOTHING_TO_DO = {"no_bills"}

# A billing day's usage is in the ledger: its events say which, as {"day": "2026-11-22"}.
COMPLETE_DAY = Asset(name="complete_usage_day", uri="x-tallybook://usage/complete-day")

DAY = Param(
    None,
    type=["null", "string"],
    format="date",
    pattern=r"^\d{4}-\d{2}-\d{2}$",
    description="The billing day, YYYY-MM-DD. Empty: the day of the run's data interval, or of its asset.",
)
USER = Param(
    None,
    type=["null", "string"],
    pattern=rf"^{NAME.pattern}(?!\n)$",
    description="This user's part only. Empty: everybody.",
)


def tell_operator(context: Any) -> None:
    """Mail a task's failure to the operator: an `on_failure_callback`, called after the last retry."""
    from billing.mail.operator import Failure, tell
    from billing.settings import BillingSettings

    task, run = context["task_instance"], context["dag_run"]
    error = context.get("exception")
    failure = Failure(task.dag_id, str(run.run_id), task.task_id, task.try_number, _one_line(error))
    for line in tell(BillingSettings(), failure):
        log.info("%s", line)


DEFAULTS: dict[str, Any] = {
    "retries": 3,
    "retry_delay": timedelta(minutes=2),
    "retry_exponential_backoff": True,
    "on_failure_callback": tell_operator,
}


def day_of(context: Mapping[str, Any], zone: tzinfo) -> date:
    """The billing day that a run is about.

    It is the one that the run's configuration names, else the latest that the asset which triggered it
    tells of, else the one in which its data interval starts.
    Raises: AirflowFailException: there is none of them (code day_missing), or the asset names no day
        (day_invalid).
    """
    named: str | None = context["params"].get("day")
    if named is not None:
        return date.fromisoformat(named)
    told = context.get("triggering_asset_events") or {}
    if days := [event.extra.get("day") for events in told.values() for event in events]:
        try:
            return max(date.fromisoformat(str(day)) for day in days)
        except ValueError as error:
            raise AirflowFailException(f"day_invalid: an asset event names no day: {error}") from error
    start: datetime | None = context.get("data_interval_start")
    if start is None:
        raise AirflowFailException('day_missing: name a day, as in --conf \'{"day": "2026-11-22"}\'')
    return billing_day(start, zone)


@contextmanager
def told() -> Iterator[None]:
    """Tell an error with its code; it is tried again if it may pass, and else fails the task at once.

    Where there is nothing to do, such as in a month without a bill, the task is skipped.
    """
    try:
        yield
    except BillingError as error:
        fail: type[AirflowException] = AirflowException if error.code in MAY_PASS else AirflowFailException
        if error.code in NOTHING_TO_DO:
            fail = AirflowSkipException
        raise fail(f"{error.code}: {error}") from error


def _one_line(error: object) -> str:
    return " ".join(str(error).split()) or type(error).__name__
