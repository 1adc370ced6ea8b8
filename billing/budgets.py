"""Monthly budgets of projects and departments: read from a file, and set against what is billed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from fractions import Fraction
from pathlib import Path
from typing import Literal

from billing import money
from billing.errors import BudgetsError
from billing.strict_toml import Entry, read

NEAR_PERCENT = 80
Kind = Literal["project", "department"]
State = Literal["under", "near", "over"]


@dataclass(frozen=True, slots=True)
class Budget:
    """What a project or department may be billed for the usage of a month, in minor units.

    It holds from the month that begins on `effective_from`, until a later one of the same name takes over.
    """

    kind: Kind
    name: str
    effective_from: date
    amount_minor: int


@dataclass(frozen=True, slots=True)
class BudgetList:
    """Every budget of the file; all are in one currency."""

    currency: str
    budgets: tuple[Budget, ...]

    def in_force(self, month: date) -> list[Budget]:
        """The budgets of the month that begins on this day, projects first, by name."""
        begun = sorted((b for b in self.budgets if b.effective_from <= month), key=lambda b: b.effective_from)
        latest = {(budget.kind, budget.name): budget for budget in begun}
        return sorted(latest.values(), key=lambda b: (b.kind != "project", b.name))


@dataclass(frozen=True, slots=True)
class Spent:
    """A budget and what has become of it. `projected_minor` is None before the first day is over."""

    budget: Budget
    billed_minor: int
    projected_minor: int | None

    @property
    def percent(self) -> Fraction | None:
        """The part of the budget that is billed; None for a budget of nothing."""
        whole = self.budget.amount_minor
        return Fraction(self.billed_minor * 100, whole) if whole else None

    @property
    def state(self) -> State:
        """`over`: more is billed than budgeted; `near`: NEAR_PERCENT of it or more."""
        if self.billed_minor > self.budget.amount_minor:
            return "over"
        near = self.billed_minor * 100 >= self.budget.amount_minor * NEAR_PERCENT
        return "near" if near and self.billed_minor else "under"


def spent(budget: Budget, billed_minor: Mapping[date, int], days: int, days_over: int) -> Spent:
    """Set a budget against what is billed for its month.

    Args:
        billed_minor: by usage day, of the whole month so far.
        days: how many days the month has.
        days_over: how many of them are over, from the first on.
    Returns: the projection is what is billed for the days that are over, per day, times the days of the
        month, rounded half up; and never less than what is billed already.
    """
    billed = sum(billed_minor.values())
    if not days_over:
        return Spent(budget, billed, None)
    of_days_over = sum(amount for day, amount in billed_minor.items() if day.day <= days_over)
    projected = int(money.shown(Fraction(of_days_over * days, days_over), 0))
    return Spent(budget, billed, max(billed, projected))


def read_budgets(file: Path) -> BudgetList:
    """Read a budgets file.

    Raises: BudgetsError: no such file (budgets_missing); not TOML, or an entry is incomplete, misspelt,
        inexact or given twice (budgets_invalid).
    """
    document = read(file, "budgets", BudgetsError)
    document.only("currency", "budgets")
    currency = document.currency("currency")
    found: dict[tuple[str, str, date], Budget] = {}
    for entry in document.entries("budgets"):
        budget = _budget(entry, currency)
        key = (budget.kind, budget.name, budget.effective_from)
        if key in found:
            entry.refuse(f"a second budget of {budget.kind} {budget.name} from {budget.effective_from:%Y-%m}")
        found[key] = budget
    return BudgetList(currency, tuple(found.values()))


def _budget(entry: Entry, currency: str) -> Budget:
    entry.only("project", "department", "effective_from", "amount")
    if ("project" in entry.table) == ("department" in entry.table):
        entry.refuse("a budget is of a project or of a department")
    kind: Kind = "project" if "project" in entry.table else "department"
    try:
        minor = money.to_minor(entry.decimal("amount"), currency)
    except ValueError as error:
        entry.refuse(f"amount: {error}")
    return Budget(kind, entry.name(kind), entry.month("effective_from"), minor)
