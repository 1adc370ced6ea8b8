"""Billing on the command line: parse, call, print."""

from __future__ import annotations

import signal
import threading
from datetime import datetime

import click

from billing import daily
from billing.bills import Closing
from billing.command import DAY, ledger_transaction, told_errors
from billing.ledger import open_ledger
from billing.money import format_amount
from billing.reconciliation import counters
from billing.reconciliation.metered import reconcile_day
from billing.reconciliation.text import render
from billing.settings import BillingSettings

_USER = click.option("--user", help="Only this user's part.")


@click.command()
@click.option(
    "--follow", is_flag=True, help="Store what comes by Kafka, until stopped; several may, at once."
)
def ingest(follow: bool) -> None:
    """Store the events and acts of the journal, and of Kafka if there is one, in the ledger, each once."""
    with told_errors():
        settings = BillingSettings()
        if not follow and not settings.journal_dir.is_dir():
            click.echo(
                f"There is no folder {settings.journal_dir} (setting journal_dir): no journal.", err=True
            )
        result = daily.follow_kafka(settings, _stopped()) if follow else daily.ingest(settings)
    click.echo(f"{result.stored:,} events stored, {result.duplicates:,} were there already.")
    if result.acts:
        click.echo(f"{result.acts:,} acts added to the audit chain.")
    for code, count in sorted(result.set_aside.items()):
        click.echo(f"{count:,} lines set aside: {code} (table set_aside).", err=True)


def _stopped() -> threading.Event:
    """Set by SIGTERM and SIGINT."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


@click.command()
@DAY
def rate(day: datetime) -> None:
    """Draft the bills of a day at the prices of the price list."""
    with told_errors():
        rated = daily.rate(BillingSettings(), day.date())
    state = "closed before, and left as they are" if rated.closed else "drafted"
    click.echo(f"{day.date()}: {rated.lines:,} lines {state}.")


@click.command()
@DAY
@click.option("--early", is_flag=True, help="Close it though it is not over; the rest becomes corrections.")
def close(day: datetime, early: bool) -> None:
    """Close a day's bills for ever, if events, aggregates and lines agree."""
    with told_errors():
        closing = daily.close(BillingSettings(), day.date(), early=early, caught_up=_tell_caught_up)
    proof = closing.proof
    done = "closed" if closing.newly_closed else "was closed already"
    click.echo(f"{closing.day} {done}: {closing.lines:,} lines.")
    click.echo(
        f"Proof: {proof.requests:,} events; tokens {proof.event_tokens:,} in events = "
        f"{proof.aggregate_tokens:,} in aggregates = {proof.line_tokens:,} on lines."
    )
    if proof.currency:
        click.echo(f"Amount: {format_amount(proof.amount_minor, proof.currency)}")
    if proof.unrated_tokens:
        click.echo(f"Unrated: {proof.unrated_tokens:,} tokens of models without a price.", err=True)


def _tell_caught_up(closing: Closing) -> None:
    click.echo(f"{closing.day} was open and is closed first: {closing.lines:,} lines.")


@click.command()
@DAY
@_USER
def report(day: datetime, user: str | None) -> None:
    """Draw a day's charts and write its bill as CSV."""
    with told_errors():
        folder = daily.report(BillingSettings(), day.date(), user)
    click.echo(f"{folder}")


@click.group()
def reconcile() -> None:
    """Set what was metered against the model servers' own counters."""


@reconcile.command("sample")
def sample_counters() -> None:
    """Read every model server's counters once.

    Run it every few minutes, so that the hours can be told apart.
    """
    with told_errors():
        settings = BillingSettings()
        ledger = open_ledger(settings.ledger_url, settings.time_zone)
        for seen in counters.sample(ledger, settings.model_counters):
            click.echo(f"{seen.server}: {len(seen.values):,} counters")


@reconcile.command("report")
@DAY
def report_reconciliation(day: datetime) -> None:
    """Show what was metered and what was served, by model and hour.

    The unmetered share is what the servers counted and no event tells of.
    """
    with ledger_transaction(writes=False) as (settings, connection):
        found = reconcile_day(connection, day.date(), settings.zone)
    for line in render(found, day.date(), settings.zone):
        click.echo(line)
