"""Cost recovery: what pools and trainings cost, set against what was billed. Pure, exact, no float."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from fractions import Fraction

from billing.costs.file import CostList

PER_TOKENS = 1000  # what a unit cost is of
_HOUR = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """What a model's usage, or several models', came to; amounts are in the currency, not in minor units.

    `billed` is on closed bills and on drafts, `draft` the part on drafts. `unrated_tokens` and
    `unbilled_tokens` (on no bill, nor draft) are tokens that nothing was billed for yet. `training_cost` is
    of the runs whose cost is known, `unknown_runs` how many others there are.
    """

    tokens: int = 0
    unrated_tokens: int = 0
    unbilled_tokens: int = 0
    billed: Fraction = Fraction(0)
    draft: Fraction = Fraction(0)
    runs: int = 0
    unknown_runs: int = 0
    training_cost: Fraction = Fraction(0)

    def __add__(self, other: Sums) -> Sums:
        return Sums(**{name: getattr(self, name) + getattr(other, name) for name in self.__slots__})


@dataclass(frozen=True, slots=True)
class Recovery:
    """What some usage cost, idle machines included, and what came back; unknown costs are None."""

    sums: Sums
    cost: Fraction | None

    @property
    def margin(self) -> Fraction | None:
        """Billed less the cost and the trainings of the period."""
        return None if self.cost is None else self.sums.billed - self.cost - self.sums.training_cost

    @property
    def unit_cost(self) -> Fraction | None:
        """The cost of PER_TOKENS tokens, without training; None also when there were none."""
        return self._per_tokens(self.cost)

    @property
    def break_even(self) -> Fraction | None:
        """The price of PER_TOKENS tokens that would have covered the cost and the trainings at this usage."""
        return self._per_tokens(None if self.cost is None else self.cost + self.sums.training_cost)

    def _per_tokens(self, amount: Fraction | None) -> Fraction | None:
        return None if amount is None or not self.sums.tokens else amount * PER_TOKENS / self.sums.tokens


@dataclass(frozen=True, slots=True)
class PoolRecovery:
    """A pool's period. `device_hours` are devices x hours; `busy_seconds` how long the whole pool needs for
    its tokens, at the given capacities; None when a model that was used has none, named in `no_capacity`.
    """

    name: str
    seconds: Fraction
    device_hours: Fraction
    whole: Recovery
    models: dict[str, Recovery]
    busy_seconds: Fraction | None
    no_capacity: tuple[str, ...]

    @property
    def utilisation(self) -> Fraction | None:
        """The busy part of the time; above 1 the given capacities are too low."""
        return None if self.busy_seconds is None or not self.seconds else self.busy_seconds / self.seconds

    @property
    def idle_cost(self) -> Fraction | None:
        """The pool's cost x (1 - utilisation), and nothing above full."""
        if self.utilisation is None or self.whole.cost is None:
            return None
        return self.whole.cost * max(Fraction(0), 1 - self.utilisation)


class _Pool:
    """What is added up of a pool, day after day."""

    def __init__(self) -> None:
        self.seconds = self.device_hours = self.cost = Fraction(0)
        self.models: dict[str, Sums] = {}
        self.busy: dict[str, Fraction | None] = {}


def recover(
    days: Mapping[date, Fraction], costs: CostList, usage: Iterable[tuple[date, str, Sums]]
) -> tuple[list[PoolRecovery], dict[str, Recovery]]:
    """Set the costs of a period against what its usage was billed.

    Args:
        days: the billing days of the period, each with the seconds of it that are over.
        usage: model by day: its tokens, bills and trainings; several of a model and day are added up.
    Returns: the pools by name; and the models that were used or trained while no pool served them.

    A pool's cost is shared among its models by the time their tokens keep it busy, idle time in proportion;
    with one model used, all is its cost; else a model without a capacity makes each share unknown.
    """
    found: dict[str, _Pool] = defaultdict(_Pool)
    elsewhere: dict[str, Sums] = {}
    for day, seconds in days.items():
        for pool in costs.in_force(day).values():
            if pool.devices:
                at = found[pool.name]
                device_hours = pool.devices * seconds / _HOUR
                at.seconds += seconds
                at.device_hours += device_hours
                at.cost += device_hours * Fraction(pool.price_per_device_hour)
    for day, model, sums in usage:
        serving = costs.of_models(day).get(model)
        if serving is None or not serving.devices:
            elsewhere[model] = elsewhere.get(model, Sums()) + sums
            continue
        at = found[serving.name]
        at.models[model] = at.models.get(model, Sums()) + sums
        if sums.tokens:
            capacity, before = serving.tokens_per_second.get(model), at.busy.get(model, Fraction(0))
            if capacity is None or before is None:
                at.busy[model] = None
            else:
                at.busy[model] = before + sums.tokens / Fraction(capacity)
    pools = [_pool_recovery(name, found[name]) for name in sorted(found)]
    return pools, {model: Recovery(elsewhere[model], None) for model in sorted(elsewhere)}


def add_up(recoveries: Iterable[Recovery]) -> Sums:
    """The sums of several models."""
    return sum((recovery.sums for recovery in recoveries), Sums())


def _pool_recovery(name: str, at: _Pool) -> PoolRecovery:
    unknown = tuple(sorted(model for model, busy in at.busy.items() if busy is None))
    busy_seconds = None if unknown else sum((b for b in at.busy.values() if b is not None), Fraction(0))
    models = {}
    for model in sorted(at.models):
        cost: Fraction | None
        if not at.models[model].tokens:
            cost = Fraction(0)  # trained or billed only: it kept no machine busy
        elif len(at.busy) == 1:
            cost = at.cost
        else:
            busy = at.busy[model]
            cost = at.cost * busy / busy_seconds if busy is not None and busy_seconds else None
        models[model] = Recovery(at.models[model], cost)
    whole = Recovery(add_up(models.values()), at.cost)
    return PoolRecovery(name, at.seconds, at.device_hours, whole, models, busy_seconds, unknown)
