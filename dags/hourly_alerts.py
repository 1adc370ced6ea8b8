"""Alerts: ingest → look at the model servers' counters → check → notify, every hour, or whenever by hand.

A step that fails keeps no later one from running: that events don't come in is itself worth an alert.
"""

from __future__ import annotations

import logging
from datetime import timedelta

from airflow.sdk import CronDataIntervalTimetable, dag, task
from airflow.sdk.exceptions import AirflowException

from billing.settings import BillingSettings
from billing.workflow import DEFAULTS, told

log = logging.getLogger("tallybook.dags")


@dag(
    schedule=CronDataIntervalTimetable("5 * * * *", timezone=BillingSettings().time_zone),
    catchup=False,
    is_paused_upon_creation=False,
    max_active_runs=1,
    default_args={**DEFAULTS, "retries": 1, "retry_delay": timedelta(minutes=1)},
    doc_md=__doc__,
    tags=["billing"],
)
def hourly_alerts() -> None:
    """Four steps, of which each may run again at any time: a change is told once."""

    @task
    def ingest() -> None:
        from billing import daily

        with told():
            result = daily.ingest(BillingSettings())
        log.info("%d events stored", result.stored)

    @task(trigger_rule="all_done")
    def sample() -> None:
        from billing.ledger import open_ledger
        from billing.reconciliation import counters

        settings = BillingSettings()
        if not settings.model_counters:
            log.info("model_counters names no server")
            return
        with told():
            counters.sample(open_ledger(settings.ledger_url, settings.time_zone), settings.model_counters)

    @task(trigger_rule="all_done")
    def check() -> dict[str, str]:
        from billing.alerts import checking
        from billing.ledger import open_ledger

        settings = BillingSettings()
        with told():
            checked = checking.check(open_ledger(settings.ledger_url, settings.time_zone), settings)
        log.info("%d found, %d changed", len(checked.findings), len(checked.changes))
        return checked.failed

    @task(trigger_rule="all_done")
    def notify(failed: dict[str, str] | None) -> None:
        from billing.alerts.notifications import deliver
        from billing.ledger import open_ledger

        settings = BillingSettings()
        with told():
            sent = deliver(open_ledger(settings.ledger_url, settings.time_zone), settings)
        for each in sent:
            log.info("%s: %s", each.channel, each.error or f"told of {each.changes}")
        wrong = [f"{each.channel}: {each.error}" for each in sent if each.error]
        wrong += [f"{rule} could not look: {why}" for rule, why in (failed or {}).items()]
        if failed is None:
            wrong.append("the check itself failed")
        if wrong:
            raise AirflowException("; ".join(wrong))

    checked = check()
    ingest() >> sample() >> checked
    notify(checked)  # type: ignore[arg-type]  # at run time what it returned


hourly_alerts()
