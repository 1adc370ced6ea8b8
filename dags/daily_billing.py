"""The daily bill: ingest → rate → close → report → mail, then the mails of those who subscribed.

It runs shortly after midnight, as soon as `keep_up` tells that the day's usage is complete, and by hand for
any day: the run's configuration names the day, and the user if only one is meant; REST takes the same.
`airflow dags trigger daily_billing --conf '{"day": "2026-11-22", "user": null}'`. With `"dry_run": true` it
tells what it would do, and stores nothing.
"""

from __future__ import annotations

import logging
from datetime import date, timedelta
from typing import Any

from airflow.sdk import AssetOrTimeSchedule, CronDataIntervalTimetable, Param, PokeReturnValue, dag, task
from airflow.sdk.exceptions import AirflowSkipException

from billing.settings import BillingSettings
from billing.workflow import COMPLETE_DAY, DAY, DEFAULTS, USER, day_of, told

log = logging.getLogger("tallybook.dags")

EARLY = Param(False, type="boolean", description="Close the day although it has not ended.")
DRY_RUN = Param(False, type="boolean", description="Tell what would be done, and store and mail nothing.")


# The tasks import `billing.daily` themselves: this file is read again and again, and charts load slowly.
@dag(
    schedule=AssetOrTimeSchedule(
        timetable=CronDataIntervalTimetable("15 0 * * *", timezone=BillingSettings().time_zone),
        assets=[COMPLETE_DAY],
    ),
    catchup=False,
    is_paused_upon_creation=False,
    max_active_runs=4,  # one that waits for its day keeps no other from running
    params={"day": DAY, "user": USER, "early": EARLY, "dry_run": DRY_RUN},
    default_args=DEFAULTS,
    doc_md=__doc__,
    tags=["billing"],
)
def daily_billing() -> None:
    """Steps over one billing day, of which each may run again at any time."""

    @task.sensor(mode="reschedule", poke_interval=30, timeout=timedelta(hours=6).total_seconds())
    def ingest(**context: Any) -> PokeReturnValue:
        from billing import daily

        params = context["params"]
        with told():
            settings = BillingSettings()
            day = day_of(context, settings.zone)
            if params["dry_run"]:
                for line in daily.rehearse(settings, day, params["user"], early=params["early"]):
                    log.info("%s", line)
                raise AirflowSkipException("a dry run ends here")
            result = daily.ingest(settings)
            waiting = [] if params["early"] else daily.backlog(settings, day)
        aside = ", ".join(f"{count} {code}" for code, count in sorted(result.set_aside.items()))
        log.info(
            "%d events stored, %d known; set aside: %s", result.stored, result.duplicates, aside or "none"
        )
        if waiting:
            log.info("%s is not complete yet: %s", day, "; ".join(waiting))
        return PokeReturnValue(not waiting, day.isoformat())

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
        done = "closed" if closing.newly_closed else "was closed already"
        log.info("%s: %s, %d events, %d tokens on lines", day, done, proof.requests, proof.line_tokens)

    @task
    def report(day: str, **context: Any) -> None:
        from billing import daily

        with told():
            folder = daily.report(BillingSettings(), date.fromisoformat(day), context["params"]["user"])
        log.info("%s: charts and bill in %s", day, folder)

    @task
    def mail(day: str, **context: Any) -> list[dict[str, int]]:
        from billing import daily

        with told():
            settings, user = BillingSettings(), context["params"]["user"]
            happened = daily.mail(settings, date.fromisoformat(day), user)
            shards = 0 if user else daily.personal_shards(settings)
        log.info("%s: %s", day, "; ".join(happened))
        return [{"shard": number, "shards": shards} for number in range(shards)]

    @task
    def personal(day: str, shard: int, shards: int) -> None:
        from billing import daily

        with told():
            new, silent = daily.personal(BillingSettings(), date.fromisoformat(day), shard, shards)
            daily.deliver_mails(BillingSettings())
        log.info("%s, shard %d of %d: %d mails, %d without usage", day, shard + 1, shards, new, silent)

    day: Any = ingest()  # at run time the text that it returned
    mailed = mail(day)
    rate(day) >> close(day) >> report(day) >> mailed
    personal.partial(day=day).expand_kwargs(mailed)


daily_billing()
