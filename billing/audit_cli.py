"""The audit on the command line: parse, call, print."""

from __future__ import annotations

from datetime import datetime

import click
import orjson

from billing import daily
from billing.acts import Chained, find, recent
from billing.audit import Trace, trace
from billing.command import DAY, ledger_transaction, told_errors
from billing.ledger import hold_events
from billing.money import format_amount
from billing.recount import recount
from billing.settings import BillingSettings


@click.group()
def audit() -> None:
    """Prove closed bills, and walk a request to its bill."""


@audit.command()
def verify() -> None:
    """Recompute every closed bill and compare it with its seal.

    Names the first difference, and then leaves with status 1. It vouches for events and what was set
    aside, the journal's offsets, hours and sums of days, prices, bills, wallets, trainings and acts; not
    for mails, alerts and samples of counters, which no bill depends on.
    """
    with told_errors():
        found = daily.verify(BillingSettings())
    click.echo(
        f"Verified {found.days:,} closed days and {found.events:,} events against {found.records:,} audit "
        f"records.\nChain head: {found.head} (keep it elsewhere: it vouches for all of them)\n"
        "Mails, alerts and samples of counters are no records: nothing vouches for them."
    )


@audit.command()
@click.argument("identifier", metavar="ID")
def show(identifier: str) -> None:
    """Walk a request to its event, its lines and the seal of its bill, or an act to its audit record."""
    with ledger_transaction(writes=False) as (_, connection):
        hold_events(connection)
        act = find(connection, identifier)
        found = None if act else trace(connection, identifier)
    if act is not None:
        _echo_act(act)
    elif found is not None:
        _echo_request(found)


@audit.command("acts")
@click.option("--last", default=20, show_default=True, type=click.IntRange(1), help="So many of them.")
def list_acts(last: int) -> None:
    """List what was decided: keys, quotas, releases, alerts; the newest last."""
    with ledger_transaction(writes=False) as (_, connection):
        chained = recent(connection, last)
    for act in reversed(chained):
        body = act.body
        click.echo(f"{body['time'][:19]}Z  {body['kind']:<20} {body['who']:<20} {body['id']}")


def _echo_act(act: Chained) -> None:
    click.echo("Act")
    for name, value in (act.body | act.body["details"]).items():
        if name != "details":
            click.echo(f"  {name:<28} {value if isinstance(value, str) else orjson.dumps(value).decode()}")
    click.echo(f"It is audit record {act.number}.")


def _echo_request(found: Trace) -> None:
    click.echo("Event")
    for name, value in found.event.items():
        if value is not None:
            click.echo(f"  {name:<28} {value.decode() if isinstance(value, bytes) else value}")
    click.echo("Lines")
    for line in found.lines:
        unrated = line["amount_minor"] is None
        told = "unrated" if unrated else format_amount(line["amount_minor"], line["currency"])
        click.echo(
            f"  bill of {line['day']}, usage of {line['usage_day']}: {line['direction']:<12} "
            f"{line['quantity_tokens']:>12,} tokens  {told}  price {line['price_id'] or 'none'}"
        )
    batch = found.batch
    click.echo(
        f"Batch {batch['id']}: {batch['requests']:,} events of {batch['day']}, from {batch['segment']} at "
        f"byte {batch['offset_bytes']:,}; root {batch['events_root'].hex()}"
    )
    _echo_path(f"The event is leaf {found.event_index} of its batch, counted from 0", found.event_path)
    if found.batch_index is None:
        click.echo("Its bill is not closed yet.")
    else:
        _echo_path(
            f"The batch is leaf {found.batch_index} of the bill of {batch['bill_day']}, sealed by audit "
            f"record {found.sealed_by}",
            found.batch_path,
        )


def _echo_path(what: str, path: list[str]) -> None:
    click.echo(f"{what}; {'path to the root:' if path else 'it is the root.'}")
    for step in path:
        click.echo(f"  {step}")


_SEVERAL = "several inputs, or token ids, whose ends the event does not hold"
_NOT_RECOUNTED = {"embeddings": _SEVERAL, "classify": _SEVERAL}


@audit.command("recount")
@DAY
def recount_command(day: datetime) -> None:
    """Count a day's captured texts again.

    Leaves with status 1 when an event was metered otherwise.
    """
    with ledger_transaction(writes=False) as (settings, connection):
        found = recount(connection, day.date(), settings.models_dir, settings.text_keys)
    click.echo(
        f"{found.day}: {found.events:,} events; {found.recounted:,} recounted, "
        f"{found.not_captured:,} without their whole text."
    )
    if found.not_decrypted:
        click.echo(
            f"Of these, {found.not_decrypted:,} hold it encrypted, and no key of `prompt_keys` reads it."
        )
    if found.dropped:
        click.echo(f"Retention has dropped {found.dropped:,} others, which can't be counted any more.")
    for fingerprint, events in found.unknown_tokenizers.items():
        click.echo(f"No model in {settings.models_dir} has the tokenizer {fingerprint}: {events:,} events.")
    for operation, events in sorted(found.not_recounted.items()):
        why = _NOT_RECOUNTED.get(operation, "an engine's own count is billed, of more than the text")
        click.echo(f"Not recounted: {events:,} events of {operation}: {why}.")
    for event_id, metered, recounted in found.differences:
        click.echo(f"{event_id}: metered {metered:,} prompt tokens, recounted {recounted:,}.")
    if found.differences:
        raise click.ClickException(
            f"recount_differs: {len(found.differences):,} events were metered otherwise"
        )
