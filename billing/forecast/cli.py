"""The forecast on the command line: parse, call, print."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import click

from billing.command import A_DAY, told_errors
from billing.forecast.run import run_forecast
from billing.settings import BillingSettings
from tallybook.calendar import ONE_DAY, today


@click.command("forecast")
@click.option("--until", type=A_DAY, help="Learn up to here.  [default: yesterday]")
@click.option("--out", type=click.Path(path_type=Path), help="Write CSV and charts to this folder.")
def forecast_command(until: datetime | None, out: Path | None) -> None:
    """Forecast the next quarter's tokens, cost and needed capacity, by department and model.

    A seasonal model is shown where it was better, on weeks held back, than the last week again.
    """
    with told_errors():
        settings = BillingSettings()
        yesterday = today(settings.zone) - ONE_DAY
        last = until.date() if until else yesterday
        if last > yesterday:
            raise click.BadParameter(f"{last} is not over", param_hint="--until")
        told, files = run_forecast(settings, last, out)
    click.echo(told)
    for file in files:
        click.echo(f"{file}")
