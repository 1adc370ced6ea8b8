"""The forecast as a whole, on a real ledger."""

from __future__ import annotations

from datetime import date, timedelta

from sqlalchemy.engine import Engine

from billing.day_sums import sum_days
from billing.forecast.report import forecast_report
from billing.ledger import writing
from billing.prices.departments import DepartmentRule
from billing.prices.tariff import Tariff
from tests.billing.days import at, bring, close
from tests.billing.factories import DAY, a_price, an_event


def test_a_department_is_forecast_by_what_it_pays_for(ledger: Engine) -> None:
    """All events say retail; of user-a, from the middle on, a rule says sales."""
    days = [DAY - timedelta(days=number) for number in range(29, -1, -1)]
    bring(ledger, [an_event(time=at(day), user=user) for day in days for user in ("user-a", "user-b")])
    rule = DepartmentRule("user-a", None, "sales", days[15])
    close(ledger, DAY, tariff=Tariff((a_price(),), (), (rule,)))
    with writing(ledger) as connection:
        sum_days(connection, date.min, DAY)
        found = forecast_report(connection, DAY, None)
    used = {(series.kind, series.name): series.used.tolist() for series in found.series}
    assert used["department", "retail"] == [240] * 15 + [120] * 15
    assert used["department", "sales"] == [0] * 15 + [120] * 15
    assert used["total", "total"] == [240] * 30
    assert all(series.cost is not None for series in found.series)
