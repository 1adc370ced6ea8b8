"""The DAGs of alerts and forecast, run by Airflow over real ledgers and robots that stand in."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, timedelta, timezone
from pathlib import Path

from tallybook.calendar import today
from tests.billing.robots import running_robots
from tests.dags import insight_runs
from tests.dags.conftest import ZONE, AirflowProcess
from tests.dags.test_daily_billing import rows

Use = Callable[..., None]
ALERTS, FORECAST = "hourly_alerts", "usage_forecast"
OK = dict.fromkeys(("ingest", "sample", "check", "notify"), "success")


def test_alerts_are_checked_every_hour_and_the_forecast_is_made_every_week(
    airflow: AirflowProcess, settings: dict[str, str]
) -> None:
    assert airflow.call(insight_runs.schedule, ALERTS, settings) == ("5 * * * *", ZONE.key, False, 1)
    assert airflow.call(insight_runs.schedule, FORECAST, settings) == ("30 6 * * 1", ZONE.key, False, 1)


def test_what_waits_in_the_journal_is_ingested_checked_and_told_once(
    airflow: AirflowProcess, settings: dict[str, str], use: Use
) -> None:
    use(today(ZONE) - timedelta(days=3), "user-a", requests=2)
    with running_robots() as robots:
        channels = f'{{"ops": "slack+{robots.url}/slack"}}'
        told = settings | {"TALLYBOOK_ALERT_CHANNELS": channels}
        first = airflow.call(insight_runs.run, ALERTS, told)
        second = airflow.call(insight_runs.run, ALERTS, told)
    assert first.tasks == second.tasks == OK
    assert len(robots.came) == 1
    assert "days with usage are over and not closed: 1" in robots.texts()[0]
    assert rows(settings, "SELECT rule, resolved_at FROM alert_episodes") == [("not_closed", None)]


def test_a_rule_that_can_not_look_fails_the_run_after_everything_else_was_told(
    airflow: AirflowProcess, settings: dict[str, str], use: Use, tmp_path: Path
) -> None:
    use(today(ZONE) - timedelta(days=3), "user-a")
    (tmp_path / "budgets.toml").write_text("nonsense")
    with running_robots() as robots:
        outcome = airflow.call(
            insight_runs.run,
            ALERTS,
            settings
            | {
                "TALLYBOOK_ALERT_CHANNELS": f'{{"ops": "slack+{robots.url}/slack"}}',
                "TALLYBOOK_BUDGETS_FILE": str(tmp_path / "budgets.toml"),
            },
        )
    assert outcome.tasks == OK | {"notify": "failed"}
    assert len(robots.came) == 1
    assert "budgets could not look: budgets_invalid" in outcome.log


def test_a_damaged_journal_keeps_nobody_from_checking(
    airflow: AirflowProcess, settings: dict[str, str], use: Use, tmp_path: Path
) -> None:
    use(today(ZONE) - timedelta(days=3), "user-a")
    (tmp_path / "journal" / "damaged.jsonl").write_text('{"journal":"committed","events":7}\n')
    outcome = airflow.call(insight_runs.run, ALERTS, settings)
    assert outcome.tasks == OK | {"ingest": "failed"}
    assert rows(settings, "SELECT count(*) FROM alert_episodes WHERE rule = 'not_closed'") == [(1,)]


def test_a_forecast_is_written_for_the_day_that_is_named_or_was_over_when_it_was_due(
    airflow: AirflowProcess, settings: dict[str, str], use: Use, tmp_path: Path
) -> None:
    for number in range(15):
        use(date(2026, 11, 22) - timedelta(days=number), "user-a")
    no_alerts = {"TALLYBOOK_ALERT_CHANNELS": "{}", "TALLYBOOK_COSTS_FILE": str(tmp_path / "costs.toml")}
    assert airflow.call(insight_runs.run, ALERTS, settings | no_alerts).tasks["ingest"] == "success"
    named = airflow.call(insight_runs.run, FORECAST, settings | no_alerts, {"day": "2026-11-20"})
    due = datetime(2026, 11, 22, 22, 30, tzinfo=timezone.utc)  # Monday, 06:30 in Shanghai
    scheduled = airflow.call(insight_runs.run, FORECAST, settings | no_alerts, None, due)
    assert (named.state, scheduled.state) == ("success", "success"), named.log + scheduled.log
    folder = tmp_path / "reports" / "forecast"
    assert {day.name for day in folder.iterdir()} == {"2026-11-20", "2026-11-22"}
    assert (folder / "2026-11-22" / "forecast.csv").read_text().startswith("kind,name,day,")


def test_a_forecast_from_nothing_fails_with_its_reason(
    airflow: AirflowProcess, settings: dict[str, str]
) -> None:
    outcome = airflow.call(insight_runs.run, FORECAST, settings, {"day": "2026-11-20"})
    assert outcome.state == "failed"
    assert "no_history: the ledger holds no usage up to 2026-11-20" in outcome.log
