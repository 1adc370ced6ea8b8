"""Mails on the command line: parse, call, print."""

from __future__ import annotations

from datetime import datetime

import click
import sqlalchemy as sa

from billing import daily
from billing.command import DAY, ledger_transaction, told_errors
from billing.mail.subscriptions import read_subscriptions
from billing.reports.words import shown
from billing.settings import BillingSettings
from billing.tables import mails


@click.command()
@DAY
@click.option("--user", help="Only this user's part.")
@click.option("--personal", is_flag=True, help="The mails of everybody who subscribed, instead of finance's.")
@click.option("--dry-run", is_flag=True, help="Bill and compose it, show it, and store nothing.")
def mail(day: datetime, user: str | None, personal: bool, dry_run: bool) -> None:
    """Mail a closed day's bill, or write it to the outbox; a bill that was mailed is not mailed again."""
    if personal and (user or dry_run):
        raise click.UsageError("--personal goes with neither --user nor --dry-run")
    with told_errors():
        settings = BillingSettings()
        if dry_run:
            lines = daily.rehearse(settings, day.date(), user)
        elif personal:
            new, silent = daily.personal(settings, day.date())
            click.echo(f"{new:,} mails composed, {silent:,} subscribers had no usage.")
            lines = daily.deliver_mails(settings)
        else:
            lines = daily.mail(settings, day.date(), user)
    for line in lines:
        click.echo(line)


@click.group()
def outbox() -> None:
    """Show which mails wait, and deliver them."""


@outbox.command("list")
@click.option("--all", "every", is_flag=True, help="Those that were delivered as well.")
def list_mails(every: bool) -> None:
    """Show the mails that nobody took yet, or not everybody, and why."""
    with ledger_transaction(writes=False) as (_, connection):
        columns = (mails.c.id, mails.c.state, mails.c.created_at, mails.c.last_error)
        query = sa.select(*columns).order_by(mails.c.created_at, mails.c.id)
        for row in connection.execute(
            query if every else query.where(mails.c.state.in_(["pending", "refused"]))
        ):
            why = f"  {shown(row.last_error)}" if row.last_error else ""
            click.echo(f"{row.state:<8} {row.created_at:%Y-%m-%d %H:%M} UTC  {shown(row.id)}{why}")


@outbox.command("deliver")
def deliver_waiting() -> None:
    """Hand over every mail that waits."""
    with told_errors():
        lines = daily.deliver_mails(BillingSettings())
    for line in lines or ["Nothing waits."]:
        click.echo(line)


@click.command()
def subscriptions() -> None:
    """Check who gets a daily mail of their own."""
    with told_errors():
        settings = BillingSettings()
        for each in read_subscriptions(settings.subscriptions_file):
            language = each.language or settings.mail_language
            click.echo(f"{each.kind} {each.name}: {', '.join(each.to)} ({language})")
