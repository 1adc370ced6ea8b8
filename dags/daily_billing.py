"""The daily bill: ingest → rate → close → report → mail, shortly after midnight, or for any day by hand.

By hand the run's configuration names the day, and the user if only one is meant; REST takes the same:
`airflow dags trigger daily_billing --conf '{"day": "2026-11-22", "user": null}'`.
"""

from __future__ import annotations

import logging
from datetime import date
from typing import Any

from airflow.sdk import CronDataIntervalTimetable, Param, dag, task

from billing.settings import BillingSettings
from billing.workflow import DAY, DEFAULTS, USER, day_of, told

log = logging.getLogger("tallybook.dags")

EARLY = Param(False, type="boolean", description="Close the day although it has not ended.")


# The tasks import `billing.daily` themselves: this file is read again and again, and charts load slowly.
@dag(
    schedule=CronDataIntervalTimetable("15 0 * * *", timezone=BillingSettings().time_zone),
    catchup=False,
    is_paused_upon_creation=False,
    max_active_runs=1,
    params={"day": DAY, "user": USER, "early": EARLY},
    default_args=DEFAULTS,
    doc_md=__doc__,
    tags=["billing"],
)
def daily_billing() -> None:
    """Five steps over one billing day, of which each may run again at any time."""

    @task
    def ingest(**context: Any) -> str:
        from billing import daily

        with told():
            settings = BillingSettings()
            day = day_of(context, settings.zone)
            result = daily.ingest(settings)
        aside = ", ".join(f"{count} {code}" for code, count in sorted(result.set_aside.items()))
        log.info(
            "%d events stored, %d known; set aside: %s", result.stored, result.duplicates, aside or "none"
        )
        return day.isoformat()

    @task
    def rate(day: str) -> None:
        from billing import daily

        with told():
            rated = daily.rate(BillingSettings(), date.fromisoformat(day))
        log.info("%s: %d lines%s", day, rated.lines, ", closed before" if rated.closed else "")

    @task
    def close(day: str, **context: Any) -> None:
        from billing import daily

        with told():
            early = context["params"]["early"]
            closing = daily.close(
                BillingSettings(),
                date.fromisoformat(day),
                early=early,
                caught_up=lambda first: log.info("%s was open and is closed first", first.day),
            )
        proof = closing.proof
        log.info("%s: closed, %d events, %d tokens on lines", day, proof.requests, proof.line_tokens)

    @task
    def report(day: str, **context: Any) -> None:
        from billing import daily

        with told():
            folder = daily.report(BillingSettings(), date.fromisoformat(day), context["params"]["user"])
        log.info("%s: charts and bill in %s", day, folder)

    @task
    def mail(day: str, **context: Any) -> None:
        from billing import daily

        with told():
            happened = daily.mail(BillingSettings(), date.fromisoformat(day), context["params"]["user"])
        log.info("%s: %s", day, "; ".join(happened))

    day: Any = ingest()  # at run time the text that it returned
    rate(day) >> close(day) >> report(day) >> mail(day)


daily_billing()
