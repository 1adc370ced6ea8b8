"""API keys on the command line: parse, call, print."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone

import click
from pydantic import ValidationError
from sqlalchemy.engine import Engine

from serving.access import keys as api_keys
from serving.access.keys import Key, Terms
from serving.access.store import open_store
from serving.errors import ApiError
from serving.settings import ServingSettings
from tallybook.usage import InvalidEventError

BY = click.option(
    "--by", default=getpass.getuser, help="Who decides this; the audit says so.  [default: you]"
)


@contextmanager
def access_store() -> Iterator[tuple[ServingSettings, Engine]]:
    """The settings and the access store; errors are told in one line with their code."""
    try:
        settings = ServingSettings()
        store = open_store(settings.access_url)
        try:
            yield settings, store
        finally:
            store.dispose()
    except ApiError as error:
        raise click.ClickException(f"{error.code}: {error.message}") from error
    except InvalidEventError as error:  # in the act that would have said so
        raise click.ClickException(f"{error.code}: {error}") from error
    except OSError as error:
        raise click.ClickException(f"act_not_recorded: nothing was changed: {error}") from error
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise click.ClickException(f"settings_invalid: {wrong}") from error


@click.group()
def keys() -> None:
    """Make, list, revoke and rotate API keys."""


@keys.command()
@click.option("--user", required=True, help="Whom its requests are billed to.")
@click.option("--project", required=True, help="The project of its requests.")
@click.option("--department", help="Their department, if it is not the project's.")
@click.option("--model", "models", multiple=True, help="A model that it may use; may be repeated. None: all.")
@click.option("--network", "networks", multiple=True, help="Where it may come from, such as 10.0.0.0/8.")
@click.option("--days", type=click.IntRange(1), help="Let it expire after so many days.")
@click.option("--for-others", is_flag=True, help="Let X-User-ID and X-Project-ID name others: for gateways.")
@click.option("--approver", is_flag=True, help="Let it approve what others ask for (docs/access.md).")
@click.option("--name", help="What it is for.  [default: the user]")
@BY
def create(
    user: str,
    project: str,
    department: str | None,
    models: tuple[str, ...],
    networks: tuple[str, ...],
    days: int | None,
    for_others: bool,
    approver: bool,
    name: str | None,
    by: str,
) -> None:
    """Make a key and print it; it is shown this once."""
    terms = Terms(
        user=user,
        project=project,
        department=department,
        models=models,
        networks=networks,
        for_others=for_others,
        approver=approver,
    )
    expires_at = None if days is None else datetime.now(timezone.utc) + timedelta(days=days)
    with access_store() as (settings, store):
        key, secret = api_keys.create(store, settings.journal_dir, terms, name or user, expires_at, by)
    _show_once(key, secret)


@keys.command("list")
def list_command() -> None:
    """List every key: what it is bound to, and whether it is live, expired or revoked."""
    with access_store() as (_, store):
        found = api_keys.list_keys(store)
    now = datetime.now(timezone.utc)
    for key in found:
        click.echo(f"{key.id}  {key.state(now):<8} {key.user} in {key.project}{_rights(key)}  ({key.name})")


@keys.command()
@click.argument("key_id", metavar="KEY-ID")
@BY
def revoke(key_id: str, by: str) -> None:
    """Let a key work no more."""
    with access_store() as (settings, store):
        api_keys.revoke(store, settings.journal_dir, key_id, by)
    seconds = settings.access_poll_seconds
    click.echo(f"{key_id} is revoked; every worker refuses it within {seconds:g} s and one reading.")


@keys.command()
@click.argument("key_id", metavar="KEY-ID")
@click.option(
    "--grace-hours", default=24.0, show_default=True, type=click.FloatRange(0), help="The old key works on."
)
@BY
def rotate(key_id: str, grace_hours: float, by: str) -> None:
    """Make a new key at the terms of an old one, once; the old one ends after a grace time."""
    with access_store() as (settings, store):
        grace = timedelta(hours=grace_hours)
        key, secret = api_keys.rotate(store, settings.journal_dir, key_id, grace, by)
    _show_once(key, secret)


def _show_once(key: Key, secret: str) -> None:
    click.echo(f"{key.id} for {key.user} in {key.project}{_rights(key)}; it is not shown again:", err=True)
    click.echo(secret)


def _rights(key: Key) -> str:
    told = [
        "" if key.models is None else f"only {', '.join(sorted(key.models))}",
        "" if key.networks is None else f"only from {', '.join(map(str, key.networks))}",
        "may name others" if key.for_others else "",
        "approver" if key.approver else "",
        "" if key.expires_at is None else f"until {key.expires_at:%Y-%m-%d %H:%M} UTC",
    ]
    return "".join(f"; {each}" for each in told if each)
