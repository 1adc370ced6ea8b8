"""The costs file: which pool of machines serves which models, and what it costs an hour, from a day on."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from pathlib import Path

from billing.errors import CostsError
from billing.strict_toml import Entry, read


@dataclass(frozen=True, slots=True)
class Pool:
    """Machines that are paid for by the hour, busy or not, from a billing day on.

    `tokens_per_second`: how many tokens, in and out, the whole pool gets through when it serves one model
    alone; models whose capacity nobody has measured are absent.
    """

    name: str
    effective_from: date
    devices: int
    price_per_device_hour: Decimal
    models: tuple[str, ...]
    tokens_per_second: dict[str, Decimal] = field(default_factory=dict)


class CostList:
    """Every pool of the file, asked by day; all prices are in one currency."""

    def __init__(self, currency: str, pools: list[Pool]) -> None:
        self.currency = currency
        self._pools = sorted(pools, key=lambda pool: pool.effective_from)

    def in_force(self, day: date) -> dict[str, Pool]:
        """The pools of a billing day by name: of each name, the last that has taken effect."""
        return {pool.name: pool for pool in self._pools if pool.effective_from <= day}

    def of_models(self, day: date) -> dict[str, Pool]:
        """Which pool serves each model on a billing day."""
        return {model: pool for pool in self.in_force(day).values() for model in pool.models}

    def starts(self) -> list[date]:
        """The days on which something changes."""
        return sorted({pool.effective_from for pool in self._pools})


def read_costs(file: Path) -> CostList:
    """Read a costs file.

    Raises: CostsError: no such file (costs_missing); not TOML, an entry that is incomplete, misspelt, inexact
        or given twice, or a model in two pools at once, whose tokens would be anybody's (costs_invalid).
    """
    document = read(file, "costs", CostsError)
    document.only("currency", "pools")
    pools: dict[tuple[str, date], Pool] = {}
    for entry in document.entries("pools"):
        pool = _pool(entry)
        if (pool.name, pool.effective_from) in pools:
            entry.refuse(f"a second {pool.name} from {pool.effective_from}")
        pools[pool.name, pool.effective_from] = pool
    costs = CostList(document.currency("currency"), list(pools.values()))
    for day in costs.starts():
        served: dict[str, str] = {}
        for pool in costs.in_force(day).values():
            for model in pool.models:
                if served.setdefault(model, pool.name) != pool.name:
                    document.refuse(f"{model} is in {served[model]} and in {pool.name} on {day}")
    return costs


def _pool(entry: Entry) -> Pool:
    entry.only("name", "effective_from", "devices", "price_per_device_hour", "models", "tokens_per_second")
    pool = Pool(
        entry.name("name"),
        entry.day("effective_from"),
        entry.whole("devices"),
        entry.decimal("price_per_device_hour"),
        entry.names("models"),
        entry.decimals("tokens_per_second"),
    )
    for model, capacity in pool.tokens_per_second.items():
        if model not in pool.models:
            entry.refuse(f"tokens_per_second of {model}, which is not one of its models")
        if not capacity:
            entry.refuse(f"tokens_per_second of {model} must be above 0; leave it out when it is not known")
    return pool
