"""What the tasks of our DAGs use, loaded once in Airflow's scheduler, from which each task is forked.

A task would else load it anew, which takes longer than most of what it does.
"""

# ruff: noqa: F401

import airflow.sdk.execution_time.task_runner

import billing.alerts.checking
import billing.alerts.notifications
import billing.daily
import billing.forecast.run
import billing.reconciliation.counters
import billing.statements.monthly
import billing.workflow
