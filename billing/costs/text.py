"""Cost recovery in words and numbers, for a terminal of 100 columns."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from billing import money
from billing.costs.recovery import PER_TOKENS, PoolRecovery, Recovery, Sums, add_up
from billing.costs.report import CostsReport
from billing.text_table import text_table

_UNIT_PLACES = 6  # of what 1,000 tokens cost
_UNKNOWN = "unknown"
_INDENT = 2


def tell_costs(report: CostsReport) -> str:
    """The report as text: a block for each pool, with a table of its models, and what no pool served."""
    lines = [
        f"Cost recovery of {report.period} in {report.currency}: {_hours(report.seconds)} hours, "
        f"until {report.until:%Y-%m-%d %H:%M} in the billing time zone.",
    ]
    places = money.decimals(report.currency)
    for pool in report.pools:
        lines += ["", *_pool(pool, places)]
    if report.elsewhere:
        lines += ["", "Served or trained outside the pools of the costs file:"]
        lines += [*_models(report.elsewhere, places), *_notes(add_up(report.elsewhere.values()), places)]
    if not report.pools and not report.elsewhere:
        lines += ["", "Nothing was served, nothing trained, and no pool is in force."]
    lines += [
        "",
        f"Unit cost: pool cost per {PER_TOKENS:,} tokens. Break-even: the price that covers trainings too.",
        "Margin: billed less both. Trainings count in the period in which they ended.",
    ]
    return "\n".join(lines)


def _pool(pool: PoolRecovery, places: int) -> Iterator[str]:
    device_hours = f"{money.shown(pool.device_hours, 2):,f}"
    yield f"Pool {pool.name}: {device_hours} device hours in {_hours(pool.seconds)} hours"
    whole, sums = pool.whole, pool.whole.sums
    if pool.utilisation is None:
        why = (
            f"no capacity given for {', '.join(pool.no_capacity)}"
            if pool.no_capacity
            else "no time has passed"
        )
        idle, used = _UNKNOWN, f"{_UNKNOWN}: {why}"
    else:
        idle, used = _amount(pool.idle_cost, places), f"{money.shown(pool.utilisation * 100, 1)}%"
        if pool.utilisation > 1:
            used += ": more than the capacity given, which is too low"
    margin = _amount(whole.margin, places)
    if whole.margin is not None and sums.billed > 0:
        margin += f"  ({money.shown(whole.margin * 100 / sums.billed, 1)}% of billed)"
    rows = {
        "pool cost": _amount(whole.cost, places),
        "of it idle": idle,
        "training": _amount(sums.training_cost, places),
        "billed": _amount(sums.billed, places),
        "margin": margin,
        "tokens": f"{sums.tokens:,}",
        "utilisation": used,
        "unit cost": _unit(whole.unit_cost),
        "break-even": _unit(whole.break_even),
    }
    yield from (f"  {name:<13}{value}" for name, value in rows.items())
    yield from _notes(sums, places)
    if pool.models:
        yield from _models(pool.models, places)


def _models(models: dict[str, Recovery], places: int) -> Iterator[str]:
    rows = [["", "tokens", "cost", "billed", "margin", "unit cost", "break-even"]]
    for model, recovery in models.items():
        amounts = (recovery.cost, recovery.sums.billed, recovery.margin)
        units = (recovery.unit_cost, recovery.break_even)
        told = (*(_amount(a, places) for a in amounts), *map(_unit, units))
        rows.append([model, f"{recovery.sums.tokens:,}", *told])
    yield from text_table(rows, _INDENT)
    for model, recovery in models.items():
        if recovery.sums.runs:
            yield f"  Trainings of {model}: {_trainings(recovery.sums, places)}"


def _trainings(sums: Sums, places: int) -> str:
    known = sums.runs - sums.unknown_runs
    told = [f"{known} for {_amount(sums.training_cost, places)}"] if known else []
    if sums.unknown_runs:
        told.append(f"{sums.unknown_runs} of unknown cost")
    return ", ".join(told)


def _notes(sums: Sums, places: int) -> Iterator[str]:
    """What the numbers above leave out, or will still change."""
    if sums.draft:
        yield f"  Of the billed, {_amount(sums.draft, places)} is on drafts, not on closed bills."
    if sums.unrated_tokens:
        yield f"  {sums.unrated_tokens:,} tokens have no price, and are billed at nothing yet."
    if sums.unbilled_tokens > 0:
        yield f"  {sums.unbilled_tokens:,} tokens are on no bill yet, nor on a draft."
    if sums.unknown_runs:
        yield f"  {sums.unknown_runs} of {sums.runs} trainings have no known cost in this currency: left out."


def _amount(amount: Fraction | None, places: int) -> str:
    return _UNKNOWN if amount is None else f"{money.shown(amount, places):,f}"


def _unit(amount: Fraction | None) -> str:
    return "-" if amount is None else f"{money.shown(amount, _UNIT_PLACES):f}"


def _hours(of: Fraction) -> str:
    """Seconds as hours."""
    return f"{money.shown(of / 3600, 2):,f}"
