"""Stored events on the command line: what was set aside, their hours, and what is old enough to drop."""

from __future__ import annotations

from datetime import datetime

import click
import sqlalchemy as sa

from billing.aggregates import rebuild_day
from billing.command import A_DAY, DAY, ledger_transaction, told_errors
from billing.ledger import lock_ledger, open_ledger
from billing.retention import drop_events
from billing.settings import BillingSettings
from billing.store import retry_set_aside
from billing.tables import set_aside as lines


@click.group()
def events() -> None:
    """Set-aside lines, hourly aggregates, and rows old enough to drop."""


@events.command("set-aside")
def list_set_aside() -> None:
    """List the lines that could not be stored, and why."""
    with ledger_transaction(writes=False) as (_, connection):
        rows = connection.execute(sa.select(lines).order_by(lines.c.set_aside_at)).all()
    for row in rows:
        click.echo(
            f"{row.set_aside_at:%Y-%m-%d %H:%M} {row.code:<22} {row.segment} at byte {row.offset_bytes:,}"
        )
        click.echo(f"  {row.message}")
    click.echo(f"{len(rows):,} set aside.")


@events.command()
def retry() -> None:
    """Read set-aside lines again, and store those that now can be."""
    with told_errors():
        settings = BillingSettings()
        ledger = open_ledger(settings.ledger_url, settings.time_zone)
        result = retry_set_aside(ledger, settings.zone)
    click.echo(f"{result.stored:,} events stored, {result.duplicates:,} were there already.")


@events.command()
@click.option(
    "--before",
    type=A_DAY,
    metavar="YYYY-MM-DD",
    required=True,
    help="Drop the events of closed days before this one; their ids, hashes, hours and bills stay.",
)
def drop(before: datetime) -> None:
    """Drop old events whose bills are closed.

    Each day is proven once more before its rows go.
    """
    with told_errors():
        settings = BillingSettings()
        for dropped in drop_events(open_ledger(settings.ledger_url, settings.time_zone), before.date()):
            click.echo(f"{dropped.day}: {dropped.events:,} events proven and dropped.")


@events.command()
@DAY
def rebuild(day: datetime) -> None:
    """Make a day's hourly aggregates anew from its events.

    They come to the same, or were wrong.
    """
    with ledger_transaction(writes=True) as (_, connection):
        lock_ledger(connection)
        hours = rebuild_day(connection, day.date())
    click.echo(f"{day.date()}: {hours:,} hourly aggregates made anew.")
