"""Quotas on the command line: limits of one, and overage by approval."""

from __future__ import annotations

from datetime import datetime, timezone

import click

from serving.access import grants
from serving.access.cli import BY, access_store
from serving.access.grants import Grant
from serving.access.store import looking
from serving.quotas.limits import GRANTABLE, QUOTAS, set_limit, set_limits

_UNTIL = click.DateTime(["%Y-%m-%dT%H:%M", "%Y-%m-%d"])


@click.group()
def quota() -> None:
    """Limits of one user, project or key, and overage: ask, approve, deny, end."""


@quota.command()
@click.argument("name", metavar="QUOTA", type=click.Choice(QUOTAS))
@click.argument("subject", metavar="USER|PROJECT|KEY-ID")
@click.argument("most", metavar="NUMBER|default")
@BY
def limit(name: str, subject: str, most: str, by: str) -> None:
    """Give one a limit of its own; `default` takes it back."""
    if most != "default" and not most.isdecimal():
        raise click.BadParameter("a whole number, or default")
    number = None if most == "default" else int(most)
    with access_store() as (settings, store):
        set_limit(store, settings.journal_dir, name, subject, number, by)
    click.echo(f"{name} of {subject}: {most}")


@quota.command()
def limits() -> None:
    """List the limits of the settings, and those that one has of its own."""
    with access_store() as (settings, store):
        for name in QUOTAS:
            everybody = getattr(settings, f"quota_{name}")
            click.echo(f"{name:<22} {'everybody':<24} {'any' if everybody is None else f'{everybody:,}'}")
        with looking(store) as connection:
            for (name, subject), most in sorted(set_limits(connection).items()):
                click.echo(f"{name:<22} {subject:<24} {most:,}")


@quota.command()
@click.argument("name", metavar="QUOTA", type=click.Choice(GRANTABLE))
@click.argument("subject", metavar="USER|PROJECT")
@click.argument("tokens", type=click.IntRange(1))
@click.option("--until", required=True, type=_UNTIL, help="In the billing time zone.")
@click.option("--reason", required=True)
@BY
def ask(name: str, subject: str, tokens: int, until: datetime, reason: str, by: str) -> None:
    """Ask for tokens above a quota, until a time."""
    with access_store() as (settings, store):
        grant = grants.ask(
            store,
            settings.journal_dir,
            quota=name,
            subject=subject,
            tokens=tokens,
            until=until.replace(tzinfo=settings.zone),
            reason=reason,
            by=by,
        )
    _show(grant)


@quota.command()
@click.argument("grant_id", metavar="GRANT-ID")
@click.option("--tokens", type=click.IntRange(1), help="Another amount than was asked for.")
@click.option("--until", type=_UNTIL, help="Another time, in the billing time zone.")
@BY
def approve(grant_id: str, tokens: int | None, until: datetime | None, by: str) -> None:
    """Grant what somebody else asked for."""
    with access_store() as (settings, store):
        ends = None if until is None else until.replace(tzinfo=settings.zone)
        _show(grants.approve(store, settings.journal_dir, grant_id, by, tokens, ends))


@quota.command()
@click.argument("grant_id", metavar="GRANT-ID")
@BY
def deny(grant_id: str, by: str) -> None:
    """Refuse what somebody else asked for."""
    with access_store() as (settings, store):
        _show(grants.deny(store, settings.journal_dir, grant_id, by))


@quota.command()
@click.argument("grant_id", metavar="GRANT-ID")
@BY
def end(grant_id: str, by: str) -> None:
    """Take a grant back before its time."""
    with access_store() as (settings, store):
        _show(grants.end(store, settings.journal_dir, grant_id, by))


@quota.command("list")
def list_command() -> None:
    """List what was asked for, and what became of it."""
    with access_store() as (_, store):
        for grant in grants.list_grants(store):
            _show(grant)


def _show(grant: Grant) -> None:
    decided = f", by {grant.decided_by}" if grant.decided_by else ""
    until = grant.until.astimezone(timezone.utc)
    click.echo(
        f"{grant.id}  {grant.state}{decided}: {grant.tokens:,} {grant.quota} for {grant.subject} until "
        f"{until:%Y-%m-%d %H:%M} UTC; asked by {grant.asked_by}: {grant.reason}"
    )
