"""`tallybook release`: versions staged, tried on a share of the users, promoted and rolled back."""

from __future__ import annotations

import getpass
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import click

from tallybook import acts

if TYPE_CHECKING:
    from serving.inference import ModelClient
    from serving.release.steps import Releases
    from serving.settings import ServingSettings

_MODEL = click.argument("model")
_BY = click.option(
    "--by", "who", default=getpass.getuser, help="Who decides, for the audit chain.  [default: you]"
)
_VERSION = click.argument("version", type=click.IntRange(1), required=False)


class _InOrder(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which they are taken."""
        return list(self.commands)


@click.group(cls=_InOrder)
def release() -> None:
    """Stage, canary, promote and roll back versions of a model, while everything goes on.

    The model config file (model_config_file) is the truth; the model server is told at once, and the API
    follows within version_poll_seconds.
    """


@release.command(short_help="Keep what answers now as the stable version.")
@_MODEL
@_BY
def adopt(model: str, who: str) -> None:
    """Keep what answers now as the stable version, so that newer ones wait to be released."""
    with _steps(model, who) as steps:
        click.echo(f"{model} {steps.adopt()} is the stable version.")


@release.command(short_help="Load a version; nobody is sent to it.")
@_MODEL
@_VERSION
@_BY
def stage(model: str, version: int | None, who: str) -> None:
    """Load a version, the newest if none is named, beside those in service; nobody is sent to it."""
    with _steps(model, who) as steps:
        click.echo(f"{model} {steps.stage(version)} is loaded, and answers nobody yet.")


@release.command(short_help="Let a version answer a share of the users.")
@_MODEL
@_VERSION
@click.option("--share", required=True, metavar="PERCENT", help="Share of the users, such as 5 or 0.25.")
@_BY
def canary(model: str, version: int | None, share: str, who: str) -> None:
    """Let a version answer a share of the users, always the same ones; or change the canary's share."""
    from serving.release.share import InvalidShareError, parse_percent, percent

    try:
        parsed = parse_percent(share)
    except InvalidShareError as error:
        raise click.BadParameter(str(error)) from None
    with _steps(model, who) as steps:
        click.echo(f"{model} {steps.canary(version, parsed)} answers {percent(parsed)}% of the users.")


@release.command(short_help="Make the canary the stable version.")
@_MODEL
@_VERSION
@_BY
def promote(model: str, version: int | None, who: str) -> None:
    """Make the canary, or the version that is named, the stable one; the one before stays at hand."""
    with _steps(model, who) as steps:
        click.echo(f"{model} {steps.promote(version)} is the stable version.")


@release.command(short_help="Take the canary out, or go back a version.")
@_MODEL
@_BY
def rollback(model: str, who: str) -> None:
    """Take the canary out of service; without one, go back to the version before the stable one."""
    with _steps(model, who) as steps:
        gone, stable = steps.rollback()
        click.echo(f"{model} {gone} is out of service; {stable} is the stable version.")


@release.command(short_help="Show the versions, their labels and shares.")
@_MODEL
def status(model: str) -> None:
    """Show a model's versions, their labels and shares, and why one is not in service."""
    from serving.release.status import read_status, table

    with _model_server() as (settings, client):
        found = read_status(settings.model_config_path, settings.models_dir, model, client)
    if not found.rows:
        raise click.ClickException(f"model_unknown: neither {settings.models_dir} nor the server has {model}")
    click.echo("\n".join(table(found)))
    if found.release is None:
        click.echo(f"{model} is not in {settings.model_config_path}: the newest version answers.")
    if found.problem is not None:
        raise click.ClickException(f"server_unreachable: {found.problem}")


@release.command(short_help="Set the canary beside the stable version.")
@_MODEL
@click.argument("version", type=click.IntRange(1))
@click.option(
    "--since",
    type=click.DateTime(["%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%dT%H:%M:%S"]),
    help="Count from this moment on, in UTC without an offset.  [default: 24 hours ago]",
)
@click.option("--min-requests", type=click.IntRange(1), default=200, show_default=True)
@click.option("--error-points", type=click.FloatRange(0), default=1.0, show_default=True)
@click.option("--slower", type=click.FloatRange(0, min_open=True), default=1.5, show_default=True)
@click.option("--more-tokens", type=click.FloatRange(0, min_open=True), default=1.25, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def compare(
    model: str,
    version: int,
    since: datetime | None,
    min_requests: int,
    error_points: float,
    slower: float,
    more_tokens: float,
    as_json: bool,
) -> None:
    """Set the canary VERSION beside the stable one by the ledger: errors, latency, tokens a request.

    Each side needs --min-requests. Good is at most --error-points percentage points more errors, --slower
    times the latency of 95% and --more-tokens times the tokens. Status 1: worse; 3: too few requests to tell.
    """
    from fractions import Fraction

    from billing.command import ledger_transaction
    from billing.versions.comparison import Limits, judge
    from billing.versions.comparison import compare as compared

    limits = Limits(
        min_requests, Fraction(str(error_points)) / 100, Fraction(str(slower)), Fraction(str(more_tokens))
    )
    start = since or datetime.now(timezone.utc) - timedelta(days=1)
    start = start.replace(tzinfo=timezone.utc) if start.tzinfo is None else start
    with ledger_transaction(writes=False) as (_, connection):
        stable, canary = compared(connection, model, str(version), start)
    verdict = judge(stable, canary, limits)
    if as_json:
        sides = {"stable": stable.requests, "canary": canary.requests}
        click.echo(json.dumps({"passed": verdict.passed, "reasons": verdict.reasons, "requests": sides}))
    else:
        click.echo("\n".join(verdict.reasons))
    if verdict.passed is not True:
        raise SystemExit(3 if verdict.passed is None else 1)


@contextmanager
def _steps(model: str, who: str) -> Iterator[Releases]:
    """The steps of a model's release, each an act of `who`; errors are told in one line with their code."""
    from serving.release.steps import Place, ReleaseError, Releases

    with _model_server() as (settings, client):
        served = settings.served_models_dir or settings.models_dir.resolve()
        place = Place(settings.model_config_path, settings.models_dir, served)

        def record(deed: str, details: Mapping[str, Any]) -> None:
            kind = f"release.{deed}"
            act = acts.Act(
                source="tallybook/release", who=who, kind=kind, details={"model": model, **details}
            )
            acts.record(settings.journal_dir, act)

        try:
            yield Releases(place, client, model, record)
        except ReleaseError as error:
            raise click.ClickException(f"{error.code}: {error}") from error
        except (OSError, ValueError) as error:
            raise click.ClickException(f"release_not_recorded: {error}") from error


@contextmanager
def _model_server() -> Iterator[tuple[ServingSettings, ModelClient]]:
    """The settings, and the model server that they name; a bad model config is told in one line."""
    from serving.inference import ModelClient
    from serving.release.files import ConfigError
    from serving.settings import ServingSettings

    settings = ServingSettings()
    client = ModelClient(settings.model_server_address)
    try:
        yield settings, client
    except ConfigError as error:
        raise click.ClickException(f"config_invalid: {error}") from error
    finally:
        client.close()
