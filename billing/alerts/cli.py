"""Alerts on the command line: parse, call, print."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click
import sqlalchemy as sa

from billing.alerts import checking
from billing.alerts.backtest import Planted, Score, raised, read_truth, score
from billing.alerts.baseline import SurgeRule
from billing.alerts.episodes import Episode, acknowledge, episodes
from billing.alerts.notifications import deliver
from billing.alerts.texts import changed, sentence
from billing.command import A_DAY, told_errors
from billing.day_sums import sum_days
from billing.errors import AlertError
from billing.ledger import open_ledger, reading, writing
from billing.settings import BillingSettings
from billing.tables import event_batches
from billing.text_table import text_table
from tallybook import acts
from tallybook.calendar import ONE_DAY, today


@click.group()
def alerts() -> None:
    """Look for what may be wrong with usage and its billing, and tell of it."""


@alerts.command()
@click.option("--quiet", is_flag=True, help="Send nothing; what changed waits for the next check.")
def check(quiet: bool) -> None:
    """Look at everything once, and send what has changed to alert_channels.

    Status 1 when a rule could not look, or a channel did not take its message.
    """
    with told_errors():
        settings = BillingSettings()
        ledger = open_ledger(settings.ledger_url, settings.time_zone)
        found = checking.check(ledger, settings)
        sent = [] if quiet else deliver(ledger, settings)
    for change in found.changes:
        click.echo(f"{change.episode.id:>5} {changed('en', change.change, _told(change.episode))}")
    click.echo(f"{len(found.findings):,} found, {len(found.changes):,} changed.")
    for each in sent:
        click.echo(f"{each.channel}: {each.error or f'told of {each.changes:,}'}", err=each.error is not None)
    for rule, why in found.failed.items():
        click.echo(f"{rule} could not look: {why}", err=True)
    if found.failed or any(each.error for each in sent):
        raise SystemExit(1)


@alerts.command("list")
@click.option("--all", "everything", is_flag=True, help="Also those that are over.")
@click.option("--most", default=50, show_default=True, type=click.IntRange(1))
def list_command(everything: bool, most: int) -> None:
    """List episodes, the latest first. Times are in the billing time zone."""
    with told_errors():
        settings = BillingSettings()
        with reading(open_ledger(settings.ledger_url, settings.time_zone)) as connection:
            found = episodes(connection, resolved=None if everything else False)
    for each in found[:most]:
        opened = each.opened_at.astimezone(settings.zone)
        by = f" by {each.acknowledged_by}" if each.acknowledged_by else ""
        click.echo(f"{each.id:>5} {opened:%Y-%m-%d %H:%M} {each.state}{by}: {_told(each)}")
    if len(found) > most:
        click.echo(f"… and {len(found) - most:,} more.")
    if not found:
        click.echo("No alerts." if everything else "No alerts that are not over.")


@alerts.command()
@click.argument("ids", nargs=-1, required=True, type=click.IntRange(1, 2**63 - 1), metavar="EPISODE...")
@click.option("--by", "who", required=True, help="Who knows of it.")
@click.option("--note", default="", help="What is being done.")
def ack(ids: tuple[int, ...], who: str, note: str) -> None:
    """Acknowledge episodes: that you know of them goes into the audit chain."""
    with told_errors():
        settings = BillingSettings()
        with writing(open_ledger(settings.ledger_url, settings.time_zone)) as connection:
            found = acknowledge(connection, ids, who, datetime.now(timezone.utc))
            for each in found:
                _record(settings.journal_dir, each, who, note)
    for each in found:
        click.echo(f"{each.id}: acknowledged by {who}: {_told(each)}")
    if len(found) < len(set(ids)):
        click.echo(f"{len(set(ids)) - len(found):,} were acknowledged before.")


@alerts.command()
@click.option("--truth", type=click.Path(path_type=Path), help="What was planted: truth.json of `simulate`.")
@click.option("--from", "since", type=A_DAY, help="[default: four weeks after the first]")
@click.option("--to", "until", type=A_DAY, help="[default: the last day with usage]")
@click.option("--show", default=20, show_default=True, type=click.IntRange(0), help="Alarms to list.")
def backtest(truth: Path | None, since: datetime | None, until: datetime | None, show: int) -> None:
    """Hold the rules, as the settings have them, against the ledger's history.

    With --truth it is told what was found of it, and how often the alarm was false; without, what would
    have been raised.
    """
    with told_errors():
        settings = BillingSettings()
        planted = read_truth(truth) if truth else None
        ledger = open_ledger(settings.ledger_url, settings.time_zone)
        with writing(ledger) as connection:
            days = (sa.func.min(event_batches.c.day), sa.func.max(event_batches.c.day))
            begun, ended = connection.execute(sa.select(*days)).one()
            if begun is None:
                raise AlertError("no_history", "the ledger holds no usage to look at")
            sum_days(connection, begun, ended)
        first = since.date() if since else begun + SurgeRule().least_weeks * 7 * ONE_DAY
        last = min(until.date() if until else ended, today(settings.zone))
        if last < first:
            raise AlertError("no_history", f"no day from {first} to {last} can be held against days before")
        with reading(ledger) as connection:
            found = raised(connection, settings, first, last)
            scores = score(connection, found, planted or [], first, last)
    click.echo(f"{first} to {last}: {len(found):,} alarms.")
    if planted is None:
        _list([f"{a.first} {a.rule} {a.name}: {a.told}" for a in found], show)
        return
    click.echo("\n".join(_table(scores)))
    for each in scores:
        _list([f"missed: {_name(each.rule, p)}" for p in each.missed], show)
        _list([f"false: {a.first} {a.rule} {a.name}: {a.told}" for a in each.false], show)


def _table(scores: list[Score]) -> list[str]:
    rows = [["", "planted", "found", "alarms", "following", "false", "precision", "recall", "false/month"]]
    for each in scores:
        counts = (len(each.planted), len(each.planted) - len(each.missed), len(each.alarms))
        rows.append(
            [
                each.rule, *map(str, counts), str(len(each.follows)), str(len(each.false)),
                _part(each.precision), _part(each.recall), f"{each.false_a_month:.2f}",
            ]
        )  # fmt: skip
    return text_table(rows)


def _part(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _name(rule: str, planted: Planted) -> str:
    return f"{planted.first} {rule} {planted.name}"


def _list(lines: list[str], most: int) -> None:
    for line in lines[:most]:
        click.echo(line)
    if len(lines) > most:
        click.echo(f"… and {len(lines) - most:,} more (--show).")


def _told(episode: Episode) -> str:
    return sentence("en", episode.rule, episode.kind, episode.subject, episode.facts)


def _record(journal_dir: Path, episode: Episode, who: str, note: str) -> None:
    details: dict[str, Any] = {
        "episode": episode.id, "rule": episode.rule, "subject_kind": episode.kind,
        "subject_name": episode.subject, "level": episode.level, "note": note,
    }  # fmt: skip
    act = acts.Act(source="tallybook/alerts", who=who, kind="alert.acknowledged", details=details)
    acts.record(journal_dir, act)
