"""The statements of a month, on the second day of the next: written by department, and mailed to finance.

For any month by hand, or by REST: `airflow dags trigger monthly_statements --conf '{"month": "2026-10"}'`.
It waits until every day of the month is closed.
"""

from __future__ import annotations

import logging
from datetime import date, timedelta
from typing import Any

from airflow.sdk import CronDataIntervalTimetable, Param, PokeReturnValue, dag, task

from billing.settings import BillingSettings
from billing.workflow import DEFAULTS, day_of, told

log = logging.getLogger("tallybook.dags")

MONTH = Param(
    None,
    type=["null", "string"],
    pattern=r"^\d{4}-(0[1-9]|1[0-2])$",
    description="The calendar month, YYYY-MM. Empty: the one in which the run's data interval starts.",
)


@dag(
    schedule=CronDataIntervalTimetable("0 6 2 * *", timezone=BillingSettings().time_zone),
    catchup=False,
    is_paused_upon_creation=False,
    max_active_runs=4,  # one that waits for its month keeps no other from running
    params={"month": MONTH},
    default_args=DEFAULTS,
    doc_md=__doc__,
    tags=["billing"],
)
def monthly_statements() -> None:
    """Two steps over one calendar month, of which each may run again at any time."""

    @task.sensor(
        mode="reschedule",
        poke_interval=30,
        exponential_backoff=True,
        max_wait=timedelta(minutes=10),
        timeout=timedelta(days=5).total_seconds(),
    )
    def closed(**context: Any) -> PokeReturnValue:
        from billing.statements import monthly

        with told():
            settings = BillingSettings()
            named = context["params"]["month"]
            month = date.fromisoformat(f"{named}-01") if named else day_of(context, settings.zone)
            days = monthly.days_to_close(settings, month)
        if days:
            log.info("still to be closed: %s", days)
        return PokeReturnValue(not days, month.isoformat())

    @task
    def write(month: str) -> None:
        from billing.statements import monthly

        with told():
            folder = monthly.write_statements(BillingSettings(), date.fromisoformat(month))
        log.info("statements in %s", folder)

    @task
    def mail(month: str) -> None:
        from billing.statements import monthly

        with told():
            happened = monthly.mail_statement(BillingSettings(), date.fromisoformat(month))
        log.info("%s", "; ".join(happened))

    month: Any = closed()  # at run time the text that it returned
    write(month) >> mail(month)


monthly_statements()
