"""Every ten minutes: store the usage that came, tell when a day is complete, deliver the mails that wait.

A day is complete when it is over and no event of it waits in the journal: that starts `daily_billing`.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

from airflow.sdk import CronTriggerTimetable, Metadata, dag, task
from airflow.sdk.exceptions import AirflowSkipException

from billing.settings import BillingSettings
from billing.workflow import COMPLETE_DAY, DEFAULTS, told

log = logging.getLogger("tallybook.dags")


@dag(
    schedule=CronTriggerTimetable("*/10 * * * *", timezone=BillingSettings().time_zone, run_immediately=True),
    catchup=False,
    is_paused_upon_creation=False,
    max_active_runs=1,
    default_args=DEFAULTS | {"retries": 1, "retry_delay": timedelta(minutes=1)},
    doc_md=__doc__,
    tags=["billing"],
)
def keep_up() -> None:
    """Two small steps, each of which may run again at any time."""

    @task
    def ingest_and_deliver() -> None:
        from billing import daily

        with told():
            for line in daily.deliver_mails(BillingSettings()):
                log.info("%s", line)
            result = daily.ingest(BillingSettings())
        log.info("%d events stored, %d known", result.stored, result.duplicates)

    @task(outlets=[COMPLETE_DAY], inlets=[COMPLETE_DAY])
    def complete(**context: Any) -> Any:
        from billing import daily

        with told():
            day = daily.complete_day(BillingSettings())
        told_of = [event.extra.get("day") for event in context["inlet_events"][COMPLETE_DAY]]
        if day is None or day.isoformat() in told_of[-1:]:
            raise AirflowSkipException("nothing new is complete")
        yield Metadata(COMPLETE_DAY, {"day": day.isoformat()})

    ingest_and_deliver() >> complete()


keep_up()
