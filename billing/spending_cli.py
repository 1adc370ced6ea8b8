"""Costs, budgets and wallets on the command line: parse, call, print."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path

import click
from sqlalchemy.engine import Connection

from billing import wallets
from billing.aggregates import roll_up
from billing.budgets import read_budgets
from billing.budgets_report import month_budgets, record_budgets, tell_budgets
from billing.command import A_DAY, A_MONTH, ledger_transaction
from billing.costs.file import read_costs
from billing.costs.report import costs_report, days_of
from billing.costs.text import tell_costs
from billing.costs.training_runs import Import, import_runs
from billing.errors import WalletError
from billing.money import format_amount, to_minor
from billing.strict_toml import DECIMAL
from billing.text_table import text_table
from tallybook.calendar import month_start, today

_WHO = click.option("--by", "who", required=True, help="Who books it.")
_NOTE = click.option("--note", default="", help="Why, such as an order's number.")
_CURRENCY = click.option("--currency", help="Such as CNY.  [default: that of the prices]")


@click.group()
def costs() -> None:
    """Set what machines and trainings cost against what was billed."""


@costs.command("import")
def import_command() -> None:
    """Store the training costs in training_dir, each once."""
    with ledger_transaction(writes=True) as (settings, connection):
        found = import_runs(connection, settings.training_dir)
    click.echo(f"{found.stored:,} trainings stored, {found.known:,} were there already.")
    _name_refused(found, settings.training_dir)


@costs.command("report")
@click.argument("period", metavar="YYYY-MM-DD|YYYY-MM")
def report_command(period: str) -> None:
    """Show what pools cost, what of it was idle, and what came back.

    Trainings and stored events that are not in the sums yet are taken in first.
    """
    try:
        days_of(period)
    except ValueError as error:
        raise click.BadParameter(f"{period!r} is neither a day nor a month") from error
    (A_DAY if period.count("-") > 1 else A_MONTH).convert(period, None, None)
    with ledger_transaction(writes=True) as (settings, connection):
        listed = read_costs(settings.costs_file)
        found = import_runs(connection, settings.training_dir)
        roll_up(connection)
        now = datetime.now(timezone.utc)
        told = tell_costs(costs_report(connection, listed, period, settings.zone, now))
    click.echo(told)
    _name_refused(found, settings.training_dir)


@click.command()
@click.argument("month", type=A_MONTH, metavar="[YYYY-MM]", required=False)
def budgets(month: datetime | None) -> None:
    """Show a month's budgets, what is billed of each, and where the month is heading."""
    with ledger_transaction(writes=True) as (settings, connection):
        listed, now = read_budgets(settings.budgets_file), datetime.now(timezone.utc)
        record_budgets(connection, listed, now)
        first = month.date() if month else month_start(today(settings.zone))
        told = tell_budgets(month_budgets(connection, listed, first, settings.zone, now))
    click.echo(told)


@click.group()
def wallet() -> None:
    """Prepaid credit of projects; every closed bill is charged to it."""


def _booking(command: Callable[..., None]) -> click.Command:
    """A command of the wallet that books an amount for a project."""
    for option in (_NOTE, _WHO, _CURRENCY, click.argument("amount"), click.argument("project")):
        command = option(command)
    return wallet.command()(command)


@_booking
def topup(project: str, amount: str, currency: str | None, who: str, note: str) -> None:
    """Add credit; bills that are closed from now on are charged to it."""
    _book(wallets.top_up, project, amount, currency, who, note)


@_booking
def refund(project: str, amount: str, currency: str | None, who: str, note: str) -> None:
    """Pay credit back to a project."""
    _book(wallets.refund, project, amount, currency, who, note)


@wallet.command()
@click.argument("project", required=False)
def show(project: str | None) -> None:
    """Show every wallet's balance, or one project's with its entries.

    Times are in the billing time zone.
    """
    with ledger_transaction(writes=False) as (settings, connection):
        found = wallets.balances(connection, project)
        booked = wallets.entries(connection, project) if project else []
    for entry in booked:
        about = f"bill of {entry.bill_day}" if entry.bill_day else f"by {entry.who}"
        amount = format_amount(entry.amount_minor, entry.currency)
        at = entry.at.astimezone(settings.zone)
        click.echo(f"{at:%Y-%m-%d %H:%M} {entry.kind:<7}{amount:>18}  {about}  {entry.note}".rstrip())
    rows = [[b.project, format_amount(b.balance_minor, b.currency)] for b in found]
    click.echo("\n".join(text_table(rows)) if rows else "No wallet.")


def _book(
    book: Callable[..., wallets.Balance], project: str, amount: str, currency: str | None, who: str, note: str
) -> None:
    with ledger_transaction(writes=True) as (_, connection):
        balance = book(connection, project, *_money(connection, amount, currency), who, note)
    click.echo(f"{project} has {format_amount(balance.balance_minor, balance.currency)}.")


def _money(connection: Connection, amount: str, currency: str | None) -> tuple[int, str]:
    """An amount in minor units, and its currency."""
    known = [currency] if currency else wallets.priced_in(connection)
    if len(known) != 1:
        raise WalletError("wallet_currency", "the ledger has no prices yet: say in which --currency")
    if not DECIMAL.fullmatch(amount):
        raise WalletError("wallet_invalid", f"{amount!r} is no amount, such as 12.50")
    try:
        return to_minor(Decimal(amount), known[0]), known[0]
    except ValueError as error:
        raise WalletError("wallet_invalid", str(error)) from error


def _name_refused(found: Import, folder: Path) -> None:
    for name, (code, message) in found.refused.items():
        click.echo(f"{folder / name} left alone: {code}: {message}", err=True)
