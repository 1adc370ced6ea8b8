"""A forecast made and written, as the command line and Airflow call it."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import get_args

from billing.costs.file import read_costs
from billing.day_sums import sum_days
from billing.errors import CostsError
from billing.forecast.report import Report, SeriesKind, forecast_report
from billing.forecast.text import draw_forecast, tell_forecast, write_forecast
from billing.ledger import open_ledger, reading, writing
from billing.settings import BillingSettings
from billing.simulation.mark import is_simulated
from tallybook.files import write_whole


def run_forecast(settings: BillingSettings, last: date, out: Path | None) -> tuple[str, list[Path]]:
    """Forecast from the days up to `last`: as text, and the files that were written to `out`.

    Raises: ForecastError: there is no usage to learn from.
    """
    ledger = open_ledger(settings.ledger_url, settings.time_zone)
    with writing(ledger) as connection:
        sum_days(connection, date.min, last)
    try:
        costs = read_costs(settings.costs_file)
    except CostsError as error:
        if error.code != "costs_missing":
            raise
        costs = None
    with reading(ledger) as connection:
        report = forecast_report(connection, last, costs)
        simulated = is_simulated(connection)
    return tell_forecast(report), _write(report, settings, out, simulated) if out else []


def _write(report: Report, settings: BillingSettings, out: Path, simulated: bool) -> list[Path]:
    contents = {"forecast.csv": write_forecast(report)}
    kinds: tuple[SeriesKind, ...] = get_args(SeriesKind)
    for kind in kinds:
        image = draw_forecast(report, kind, settings.mail_language, simulated=simulated)
        if image is not None:
            contents[f"forecast-{kind}.png"] = image
    for name, content in contents.items():
        write_whole(out / name, content)
    return [out / name for name in contents]
