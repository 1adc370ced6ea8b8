"""The forecast of the next quarter, every Monday morning, or from any day on by hand.

It is written to reports_dir: forecast/<last day>/forecast.csv and charts.
`airflow dags trigger usage_forecast --conf '{"day": "2026-11-22"}'` learns up to that day.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import date, datetime, tzinfo
from typing import Any

from airflow.sdk import CronDataIntervalTimetable, dag, task

from billing.settings import BillingSettings
from billing.workflow import DAY, DEFAULTS, told
from tallybook.calendar import ONE_DAY, billing_day, today

log = logging.getLogger("tallybook.dags")


@dag(
    schedule=CronDataIntervalTimetable("30 6 * * 1", timezone=BillingSettings().time_zone),
    catchup=False,
    is_paused_upon_creation=False,
    max_active_runs=1,
    params={"day": DAY},
    default_args=DEFAULTS,
    doc_md=__doc__,
    tags=["billing"],
)
def usage_forecast() -> None:
    """One step, which may run again at any time: the same history makes the same forecast."""

    @task
    def forecast(**context: Any) -> str:
        from billing.forecast.run import run_forecast

        settings = BillingSettings()
        last = _last_day(context, settings.zone)
        with told():
            text, files = run_forecast(settings, last, settings.reports_dir / "forecast" / str(last))
        log.info("%s", text)
        return str(files[0].parent)

    forecast()


def _last_day(context: Mapping[str, Any], zone: tzinfo) -> date:
    """The day that the run's configuration names, else the last that was over when it was due."""
    named: str | None = context["params"].get("day")
    if named is not None:
        return date.fromisoformat(named)
    end: datetime | None = context.get("data_interval_end")
    return (billing_day(end, zone) if end else today(zone)) - ONE_DAY


usage_forecast()
