"""Billing on the command line: parse, call, print."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import click
from pydantic import ValidationError

from billing import counters, daily
from billing.errors import BillingError
from billing.ledger import open_ledger, reading
from billing.money import format_amount
from billing.reconciliation import reconcile_day
from billing.reconciliation_text import render
from billing.recount import recount
from billing.settings import BillingSettings

_DAY = click.argument("day", type=click.DateTime(["%Y-%m-%d"]), metavar="YYYY-MM-DD")
_USER = click.option("--user", help="Only this user's part.")


@contextmanager
def _told() -> Iterator[None]:
    """Tell an error in one line with its code, and leave with status 1."""
    try:
        yield
    except BillingError as error:
        raise click.ClickException(f"{error.code}: {error}") from error
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise click.ClickException(f"settings_invalid: {wrong}") from error


@click.command()
@click.option(
    "--follow", is_flag=True, help="Store what comes by Kafka, until stopped; several may, at once."
)
def ingest(follow: bool) -> None:
    """Store the usage events of the journal, and of Kafka if there is one, in the ledger, each once."""
    with _told():
        settings = BillingSettings()
        result = daily.follow_kafka(settings, _stopped()) if follow else daily.ingest(settings)
    click.echo(f"{result.stored:,} events stored, {result.duplicates:,} were there already.")
    for code, count in sorted(result.set_aside.items()):
        click.echo(f"{count:,} lines set aside: {code} (table set_aside).", err=True)


def _stopped() -> threading.Event:
    """Set by SIGTERM and SIGINT."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


@click.command()
@_DAY
def rate(day: datetime) -> None:
    """Draft the bills of a day at the prices of the price list."""
    with _told():
        lines = daily.rate(BillingSettings(), day.date())
    click.echo(f"{day.date()}: {lines:,} lines.")


@click.command()
@_DAY
@click.option("--early", is_flag=True, help="Close it though it is not over; the rest becomes corrections.")
def close(day: datetime, early: bool) -> None:
    """Close a day's bills for ever, if events, aggregates and lines agree."""
    with _told():
        closing = daily.close(BillingSettings(), day.date(), early=early)
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


@click.command()
@_DAY
@_USER
def report(day: datetime, user: str | None) -> None:
    """Draw a day's charts and write its bill as CSV."""
    with _told():
        folder = daily.report(BillingSettings(), day.date(), user)
    click.echo(f"{folder}")


@click.command()
@_DAY
@_USER
def mail(day: datetime, user: str | None) -> None:
    """Mail a closed day's bill, or write it to the outbox; a bill that was mailed is not mailed again."""
    with _told():
        for line in daily.mail(BillingSettings(), day.date(), user):
            click.echo(line)


@click.group()
def audit() -> None:
    """Prove closed bills, and walk a request to its bill."""


@audit.command()
def verify() -> None:
    """Recompute every closed bill and compare it with what was sealed; names the first difference."""
    with _told():
        found = daily.verify(BillingSettings())
    click.echo(
        f"Verified {found.days:,} closed days of {found.events:,} events against {found.records:,} audit "
        f"records.\nChain head: {found.head} (keep it elsewhere: it vouches for all of them)"
    )


@audit.command()
@click.argument("request_id")
def show(request_id: str) -> None:
    """Walk a request to its event, its lines and the seal of its bill."""
    with _told():
        found = daily.trace(BillingSettings(), request_id)
    click.echo("Event")
    for name, value in found.event.items():
        if value is not None:
            click.echo(f"  {name:<28} {value}")
    click.echo("Lines")
    for line in found.lines:
        told = (
            "unrated"
            if line["amount_minor"] is None
            else format_amount(line["amount_minor"], line["currency"])
        )
        click.echo(
            f"  bill of {line['day']}, usage of {line['usage_day']}: {line['direction']:<12} "
            f"{line['quantity_tokens']:>12,} tokens  {told}  price {line['price_id'] or 'none'}"
        )
    if found.sealed_by is None:
        click.echo("Its bill is not closed yet.")
    else:
        click.echo(f"Sealed by audit record {found.sealed_by}, event {found.index}; path to its root:")
        for step in found.path:
            click.echo(f"  {step}")


@audit.command("recount")
@_DAY
def recount_command(day: datetime) -> None:
    """Count a day's captured texts again; status 1 when an event was metered otherwise."""
    with _told():
        settings = BillingSettings()
        with reading(open_ledger(settings.ledger_url, settings.time_zone)) as connection:
            found = recount(connection, day.date(), settings.models_dir)
    click.echo(
        f"{found.day}: {found.events:,} events; {found.recounted:,} recounted, "
        f"{found.not_captured:,} without their whole text."
    )
    for fingerprint, events in found.unknown_tokenizers.items():
        click.echo(f"No model in {settings.models_dir} has the tokenizer {fingerprint}: {events:,} events.")
    for event_id, metered, recounted in found.differences:
        click.echo(f"{event_id}: metered {metered:,} prompt tokens, recounted {recounted:,}.")
    if found.differences:
        raise click.ClickException(
            f"recount_differs: {len(found.differences):,} events were metered otherwise"
        )


@click.group()
def reconcile() -> None:
    """Set what was metered against the model servers' own counters."""


@reconcile.command("sample")
def sample_counters() -> None:
    """Look at every model server's counters once; every few minutes, so that the hours can be told apart."""
    with _told():
        settings = BillingSettings()
        ledger = open_ledger(settings.ledger_url, settings.time_zone)
        for seen in counters.sample(ledger, settings.model_counters):
            click.echo(f"{seen.server}: {len(seen.values):,} counters")


@reconcile.command("report")
@_DAY
def report_reconciliation(day: datetime) -> None:
    """Show each model's metered and served requests and tokens by hour, and the unmetered share."""
    with _told():
        settings = BillingSettings()
        with reading(open_ledger(settings.ledger_url, settings.time_zone)) as connection:
            found = reconcile_day(connection, day.date(), settings.zone)
    for line in render(found, day.date(), settings.zone):
        click.echo(line)
