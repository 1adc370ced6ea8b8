"""The price file on the command line: what an import would change, and the import."""

from __future__ import annotations

import getpass

import click
from sqlalchemy.engine import Engine

from billing.command import told_errors
from billing.errors import PricesError
from billing.ledger import open_ledger, reading, writing
from billing.prices.book import Changes, changes, check, import_tariff
from billing.prices.departments import DepartmentRule
from billing.prices.discounts import Discount
from billing.prices.file import read_tariff
from billing.prices.price_list import Price
from billing.prices.tariff import Tariff
from billing.prices.words import described
from billing.settings import BillingSettings


@click.group()
def prices() -> None:
    """Compare the price file with the ledger's price book, and import it."""


@prices.command("diff")
def diff_command() -> None:
    """Show what an import would change."""
    with told_errors():
        _compare(*_opened())


@prices.command("import")
@click.option("--yes", is_flag=True, help="Import without asking.")
@click.option(
    "--by", "who", default=getpass.getuser, help="Who the audit chain names.  [default: the system's user]"
)
def import_command(*, yes: bool, who: str) -> None:
    """Show the changes, ask, and import them."""
    with told_errors():
        ledger, tariff = _opened()
        shown = _compare(ledger, tariff)
        if not shown or not (yes or click.confirm("Import?")):
            return
        with writing(ledger) as connection:
            if import_tariff(connection, tariff, who) != shown:
                raise PricesError("prices_changed", "the price book was changed meanwhile: look at it again")
        click.echo(f"Imported by {who}.")


def _opened() -> tuple[Engine, Tariff]:
    settings = BillingSettings()
    return open_ledger(settings.ledger_url, settings.time_zone), read_tariff(settings.prices_file)


def _compare(ledger: Engine, tariff: Tariff) -> Changes:
    with reading(ledger) as connection:
        found = changes(connection, tariff)
        for sign, part in (("-", found.withdrawn), ("+", found.added)):
            everything: list[Price | Discount | DepartmentRule] = [*part.prices, *part.discounts, *part.rules]
            for terms in everything:
                click.echo(f"{sign} {described(terms)}")
        if not found:
            click.echo("The price book is what the price file says.")
        check(connection, found)
    return found
