"""A simulated history on the command line: parse, call, print."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import click

from billing.command import A_DAY, told_errors
from billing.ledger import open_ledger
from billing.settings import BillingSettings
from billing.simulation.history import simulate, write_settings
from billing.simulation.mark import TOLD
from billing.simulation.world import make_world
from tallybook.calendar import ONE_DAY, today


@click.command("simulate")
@click.option("--days", default=180, show_default=True, type=click.IntRange(1, 3660))
@click.option("--users", default=500, show_default=True, type=click.IntRange(1, 100_000))
@click.option(
    "--requests", default=6.0, show_default=True, type=click.FloatRange(0.01, 10_000),
    help="Of a user on a working day, on average.",
)  # fmt: skip
@click.option("--seed", default=7, show_default=True, type=click.IntRange(0), help="Same seed, same history.")
@click.option("--until", type=A_DAY, help="The last day.  [default: yesterday]")
@click.option("--close", "closing", is_flag=True, help="Close each day's bills as well.")
@click.option(
    "--folder", default=Path("var/simulated"), show_default=True, type=click.Path(path_type=Path),
    help="For the ledger, its settings and prices, and truth.json: what was planted.",
)  # fmt: skip
@click.option("--ledger", "url", help="URL of another ledger.  [default: FOLDER/ledger.db]")
@click.option("--force", is_flag=True, help="Also into a ledger with real events, or another history.")
def simulate_command(
    days: int,
    users: int,
    requests: float,
    seed: int,
    until: datetime | None,
    closing: bool,
    folder: Path,
    url: str | None,
    force: bool,
) -> None:
    """Make a realistic history of usage, in a ledger of its own, to try everything on.

    It has a weekly rhythm, growth, failures, model upgrades, and surges that an alert should find.
    Everything that shows this ledger says that it is simulated.
    """
    with told_errors():
        settings = BillingSettings()
        yesterday = today(settings.zone) - ONE_DAY
        last = until.date() if until else yesterday
        if last > yesterday:
            raise click.BadParameter(f"{last} is not over", param_hint="--until")
        folder.mkdir(parents=True, exist_ok=True)
        url = url or f"sqlite:///{folder.absolute() / 'ledger.db'}"
        world = make_world(last, days, users, requests, seed)
        ledger = open_ledger(url, settings.time_zone)
        file = write_settings(folder, url, settings.time_zone)
        with click.progressbar(length=days, label=f"{days} days") as bar:
            done = simulate(
                ledger, world, folder, settings.zone,
                close=closing, force=force, progress=lambda _: bar.update(1),
            )  # fmt: skip
    click.echo(TOLD)
    click.echo(
        f"{done.stored:,} events stored; {world.day(0)} to {last}, "
        f"{len(world.surges)} surges planted ({folder / 'truth.json'})."
    )
    making, storing = (_rate(done.stored, each) for each in (done.making_seconds, done.storing_seconds))
    click.echo(
        f"Making {making}, storing {storing}"
        + (f"; {done.closed:,} days closed in {done.closing_seconds:.0f} s." if closing else ".")
    )
    click.echo(f"Try it: tallybook --config {file} report {last}")


def _rate(events: int, seconds: float) -> str:
    return f"{events / seconds:,.0f} events/s" if seconds else "at once"
