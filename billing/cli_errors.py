"""How a command of billing tells an error: one line, a stable code, status 1."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click
import psycopg
import sqlalchemy as sa
from pydantic import ValidationError

from billing.errors import BillingError


@contextmanager
def told_errors() -> Iterator[None]:
    """Tell an error in one line with its code, and leave with status 1."""
    try:
        yield
    except BillingError as error:
        raise click.ClickException(f"{error.code}: {error}") from error
    except (sa.exc.OperationalError, psycopg.OperationalError) as error:
        # What was under way was rolled back as a whole: run it again.
        what = error.orig if isinstance(error, sa.exc.OperationalError) else error
        told = " ".join(str(what).split())  # the client library breaks its lines
        raise click.ClickException(f"ledger_unavailable: the database went away: {told}") from error
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise click.ClickException(f"settings_invalid: {wrong}") from error
