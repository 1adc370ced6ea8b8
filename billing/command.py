"""What commands of billing share: the ledger of the settings, a day, and how an error is told."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
import psycopg
import sqlalchemy as sa
from pydantic import ValidationError
from sqlalchemy.engine import Connection

from billing.errors import BillingError
from billing.ledger import open_ledger, reading, writing
from billing.settings import BillingSettings

_YEARS = range(1970, 9999)  # the first and the last of all have no day before, and none after


class BillingDate(click.DateTime):
    """A day, or the first day of a month, in years that can be billed."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """What was typed as a `datetime`; a year that was mistyped is refused."""
        found = super().convert(value, param, ctx)
        if found.year not in _YEARS:
            self.fail(f"{value!r} is in no year from {_YEARS[0]} to {_YEARS[-1]}.", param, ctx)
        return found


A_DAY, A_MONTH = BillingDate(["%Y-%m-%d"]), BillingDate(["%Y-%m"])
DAY = click.argument("day", type=A_DAY, metavar="YYYY-MM-DD")


@contextmanager
def told_errors() -> Iterator[None]:
    """Tell an error in one line with its code, and leave with status 1."""
    try:
        yield
    except BillingError as error:
        raise click.ClickException(f"{error.code}: {error}") from error
    except (sa.exc.OperationalError, psycopg.OperationalError, sqlite3.OperationalError) as error:
        # What was under way was rolled back as a whole: run it again.
        what = error.orig if isinstance(error, sa.exc.OperationalError) else error
        told = " ".join(str(what).split())  # the client library breaks its lines
        raise click.ClickException(f"ledger_unavailable: the database went away: {told}") from error
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise click.ClickException(f"settings_invalid: {wrong}") from error
    except BrokenPipeError:
        raise  # click leaves quietly when nobody reads on
    except OSError as error:
        raise click.ClickException(f"file_unusable: {error}") from error


@contextmanager
def ledger_transaction(*, writes: bool) -> Iterator[tuple[BillingSettings, Connection]]:
    """The settings, and one transaction in their ledger; errors are told."""
    with told_errors():
        settings = BillingSettings()
        transaction = writing if writes else reading
        with transaction(open_ledger(settings.ledger_url, settings.time_zone)) as connection:
            yield settings, connection
