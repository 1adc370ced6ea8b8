"""Statements and exports on the command line: parse, call, print."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path

import click

from billing.command import A_DAY, A_MONTH, ledger_transaction, told_errors
from billing.exports.beancount import write_beancount
from billing.exports.closed_bills import Exported, export_file, month_of, period, told_days
from billing.exports.focus_files import export_focus, rows_writer
from billing.ledger import open_ledger, reading
from billing.selection import Selection
from billing.settings import BillingSettings
from billing.statements.statement import statement
from billing.statements.text import as_csv, as_text

_MONTH = click.argument("month", type=A_MONTH, metavar="YYYY-MM")
_OUT = click.option("--out", type=click.Path(path_type=Path), required=True, help="The file to write.")


@click.command("statement")
@_MONTH
@click.option("--user", help="Only this user's bills.")
@click.option("--project", help="Only this project's bills.")
@click.option("--department", help="Only this department's bills.")
@click.option("--format", "kind", type=click.Choice(["text", "csv"]), default="text", show_default=True)
def statement_command(
    month: datetime, user: str | None, project: str | None, department: str | None, kind: str
) -> None:
    """Show what a month's bills come to, and how that was rounded."""
    with ledger_transaction(writes=False) as (settings, connection):
        selection = Selection(user, project, department)
        told = statement(connection, month.date(), settings.zone, selection)
    sys.stdout.buffer.write(as_csv(told) if kind == "csv" else as_text(told).encode())


@click.group()
def export() -> None:
    """Write closed bills for other programs: FOCUS, Beancount."""


@export.command()
@click.option("--from", "first", type=A_DAY, required=True, metavar="YYYY-MM-DD", help="The first bill day.")
@click.option("--to", "last", type=A_DAY, required=True, metavar="YYYY-MM-DD", help="The last bill day.")
@_OUT
def focus(first: datetime, last: datetime, out: Path) -> None:
    """Write closed bills as FOCUS 1.2 cost data, as CSV or Parquet.

    Which of them, the ending of --out says: .csv or .parquet.
    """
    with told_errors():
        settings = BillingSettings()
        days, write = period(first.date(), last.date(), settings.zone), rows_writer(out)
        with (
            reading(open_ledger(settings.ledger_url, settings.time_zone)) as connection,
            export_file(out) as file,
        ):
            exported = export_focus(connection, days, settings.zone, settings.provider_name, write, file)
    _tell(exported, out)


@export.command()
@_MONTH
@_OUT
def beancount(month: datetime, out: Path) -> None:
    """Write a month's closed bills as a Beancount ledger.

    bean-check then computes every amount again.
    """
    with told_errors():
        settings = BillingSettings()
        days = month_of(month.date(), settings.zone)
        with (
            reading(open_ledger(settings.ledger_url, settings.time_zone)) as connection,
            export_file(out) as file,
        ):
            exported = write_beancount(connection, days, settings.zone, file)
    _tell(exported, out)


def _tell(exported: Exported, out: Path) -> None:
    click.echo(f"{out}: {exported.lines:,} lines.")
    if exported.unrated_lines:
        click.echo(f"Left out, having no amount: {exported.unrated_lines:,} unrated lines.", err=True)
    if exported.open_days:
        click.echo(f"Not closed yet, and not in it: {told_days(list(exported.open_days))}", err=True)
