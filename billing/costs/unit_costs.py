"""What a thousand tokens cost on each day, beside how busy the machines were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timezone, tzinfo
from fractions import Fraction

from sqlalchemy.engine import Connection

from billing.costs.file import CostList
from billing.costs.report import pools_by_day


@dataclass(frozen=True, slots=True)
class UnitCost:
    """A pool's day: the cost of 1,000 tokens in `currency`, without training, at this utilisation."""

    day: date
    pool: str
    utilisation: Fraction
    unit_cost: Fraction
    currency: str


def daily_unit_costs(
    connection: Connection, days: Sequence[date], zone: tzinfo, costs: CostList | None
) -> tuple[UnitCost, ...]:
    """Of the days on which a pool was used and its utilisation is known; none without `costs`."""
    if costs is None or not days:
        return ()
    return tuple(
        UnitCost(day, pool.name, pool.utilisation, pool.whole.unit_cost, costs.currency)
        for day, pools in pools_by_day(connection, costs, days, zone, datetime.now(timezone.utc))
        for pool in pools
        if pool.utilisation is not None and pool.whole.unit_cost is not None
    )
