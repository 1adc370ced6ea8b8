"""The daily bill: ingest → rate → close → report → mail, shortly after midnight, or for any day by hand.

By hand the run's configuration names the day, and the user if only one is meant; REST takes the same:
`airflow dags trigger daily_billing --conf '{"day": "2026-11-22", "user": null}'`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date, datetime, timedelta, tzinfo
from typing import Any

from airflow.sdk import CronDataIntervalTimetable, Param, dag, task
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from billing.errors import BillingError
from billing.settings import BillingSettings
from tallybook.calendar import billing_day
from tallybook.usage import NAME

log = logging.getLogger("tallybook.dags")
# Of billing's errors those that end by themselves: a database or a mail server that is away comes back.
MAY_PASS = {"ledger_unavailable", "mail_not_delivered"}

PARAMS = {
    "day": Param(
        None,
        type=["null", "string"],
        format="date",
        pattern=r"^\d{4}-\d{2}-\d{2}$",
        description="The billing day, YYYY-MM-DD. Empty: the day of the run's data interval.",
    ),
    "user": Param(
        None,
        type=["null", "string"],
        pattern=rf"^{NAME.pattern}(?!\n)$",
        description="Report and mail this user's part only. Empty: the whole day.",
    ),
    "early": Param(False, type="boolean", description="Close the day although it has not ended."),
}


# The tasks import `billing.daily` themselves: this file is read again and again, and charts load slowly.
@dag(
    schedule=CronDataIntervalTimetable("15 0 * * *", timezone=BillingSettings().time_zone),
    catchup=False,
    is_paused_upon_creation=False,
    max_active_runs=1,
    params=PARAMS,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=2), "retry_exponential_backoff": True},
    doc_md=__doc__,
    tags=["billing"],
)
def daily_billing() -> None:
    """Five steps over one billing day, of which each may run again at any time."""

    @task
    def ingest(**context: Any) -> str:
        from billing import daily

        with _told():
            settings = BillingSettings()
            day = _day(context, settings.zone)
            result = daily.ingest(settings)
        aside = ", ".join(f"{count} {code}" for code, count in sorted(result.set_aside.items()))
        log.info(
            "%d events stored, %d known; set aside: %s", result.stored, result.duplicates, aside or "none"
        )
        return day.isoformat()

    @task
    def rate(day: str) -> None:
        from billing import daily

        with _told():
            lines = daily.rate(BillingSettings(), date.fromisoformat(day))
        log.info("%s: %d lines", day, lines)

    @task
    def close(day: str, **context: Any) -> None:
        from billing import daily

        with _told():
            early = context["params"]["early"]
            closing = daily.close(BillingSettings(), date.fromisoformat(day), early=early)
        proof = closing.proof
        log.info("%s: closed, %d events, %d tokens on lines", day, proof.requests, proof.line_tokens)

    @task
    def report(day: str, **context: Any) -> None:
        from billing import daily

        with _told():
            folder = daily.report(BillingSettings(), date.fromisoformat(day), context["params"]["user"])
        log.info("%s: charts and bill in %s", day, folder)

    @task
    def mail(day: str, **context: Any) -> None:
        from billing import daily

        with _told():
            happened = daily.mail(BillingSettings(), date.fromisoformat(day), context["params"]["user"])
        log.info("%s: %s", day, "; ".join(happened))

    day: Any = ingest()  # at run time the text that it returned
    rate(day) >> close(day) >> report(day) >> mail(day)


def _day(context: Mapping[str, Any], zone: tzinfo) -> date:
    """The day that the run's configuration names, else the billing day in which its data interval starts."""
    named: str | None = context["params"]["day"]
    if named is not None:
        return date.fromisoformat(named)
    start: datetime | None = context.get("data_interval_start")
    if start is None:
        raise AirflowFailException('day_missing: name a day, as in --conf \'{"day": "2026-11-22"}\'')
    return billing_day(start, zone)


@contextmanager
def _told() -> Iterator[None]:
    """Tell an error with its code; it is tried again if it may pass."""
    try:
        yield
    except BillingError as error:
        fail = AirflowException if error.code in MAY_PASS else AirflowFailException
        raise fail(f"{error.code}: {error}") from error


daily_billing()
