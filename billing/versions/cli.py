"""Reports of model versions on the command line: parse, call, print."""

from __future__ import annotations

from datetime import datetime

import click

from billing.aggregates import roll_up
from billing.command import A_DAY, ledger_transaction
from billing.versions.report import tell_versions, version_report
from tallybook.calendar import ONE_DAY, today

_DAYS = 90


@click.group()
def versions() -> None:
    """Model versions side by side."""


@versions.command("report")
@click.argument("model")
@click.option("--from", "since", type=A_DAY, help="[default: 90 days before the last]")
@click.option("--to", "until", type=A_DAY, help="[default: today]")
def report_command(model: str, since: datetime | None, until: datetime | None) -> None:
    """Show tokens, answer times, cost and quality of a model's versions: did the upgrade pay?"""
    with ledger_transaction(writes=True) as (settings, connection):
        roll_up(connection)
        last = until.date() if until else today(settings.zone)
        first = since.date() if since else last - (_DAYS - 1) * ONE_DAY
        uses = version_report(connection, model, settings.models_dir, first, last)
    click.echo(tell_versions(model, uses, first, last))
