"""A month's budgets as the ledger stands: read, told in text, and their changes recorded."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from datetime import date, datetime, tzinfo
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing import chain, money
from billing.aggregates import whole
from billing.billed import billed_by
from billing.budgets import BudgetList, Kind, Spent, spent
from billing.tables import audit_records, bill_lines, event_batches
from billing.text_table import text_table
from tallybook.calendar import day_interval, month_days

_RECORD = "budgets"


@dataclass(frozen=True)
class MonthBudgets:
    """The budgets of a month; `unrated_tokens` and `unbilled_tokens` are used, and billed at nothing yet."""

    month: date
    currency: str
    days: int
    days_over: int
    spent: tuple[Spent, ...]
    unrated_tokens: int
    unbilled_tokens: int


def month_budgets(
    connection: Connection, budgets: BudgetList, month: date, zone: tzinfo, now: datetime
) -> MonthBudgets:
    """Set the budgets in force in the month that begins on `month` against its usage's lines, drafts too."""
    days = month_days(month)
    last = days[-1]
    billed: dict[tuple[Kind, str], dict[date, int]] = defaultdict(dict)
    columns: dict[Kind, sa.Column[Any]] = {
        "project": bill_lines.c.project,
        "department": bill_lines.c.department,
    }
    for kind, column in columns.items():
        unrated = on_lines = 0  # the same by either column
        for found in billed_by(connection, month, last, column, budgets.currency):
            billed[kind, found.name][found.usage_day] = found.amount_minor
            unrated += found.unrated_tokens
            on_lines += found.tokens
    days_over = sum(day_interval(day, zone).end <= now for day in days)
    told = tuple(
        spent(budget, billed[budget.kind, budget.name], last.day, days_over)
        for budget in budgets.in_force(month)
    )
    used = _used_tokens(connection, month, last)
    return MonthBudgets(month, budgets.currency, last.day, days_over, told, unrated, max(0, used - on_lines))


def tell_budgets(found: MonthBudgets) -> str:
    """The month's budgets as text, a line each."""
    lines = [
        f"Budgets of {found.month:%Y-%m} in {found.currency}; {found.days_over} of {found.days} days past.",
        "",
    ]
    if found.spent:
        rows = [["", "budget", "billed", "used", "projected", "state"]]
        for each in found.spent:
            percent = "-" if each.percent is None else f"{money.shown(each.percent, 1)}%"
            amounts = (each.budget.amount_minor, each.billed_minor, each.projected_minor)
            budget, billed, projected = (_amount(amount, found.currency) for amount in amounts)
            name = f"{each.budget.kind} {each.budget.name}"
            rows.append([name, budget, billed, percent, projected, each.state])
        lines += text_table(rows)
    else:
        lines.append("No budget is in force in this month.")
    lines += [
        "",
        "Billed: for the usage of the month, drafts included.",
        f"Projected: billed for the days that are over, per day, times {found.days}.",
    ]
    if found.unrated_tokens:
        lines.append(f"Not in it: {found.unrated_tokens:,} tokens that have no price.")
    if found.unbilled_tokens:
        lines.append(f"Not in it: {found.unbilled_tokens:,} tokens that are on no bill yet, nor on a draft.")
    return "\n".join(lines)


def record_budgets(connection: Connection, budgets: BudgetList, now: datetime) -> bool:
    """Record the budgets in the audit chain, if they are not what was recorded last; whether they were."""
    entries = sorted(
        ({**asdict(b), "effective_from": b.effective_from.isoformat()} for b in budgets.budgets),
        key=lambda entry: (entry["kind"], entry["name"], entry["effective_from"]),
    )
    body = {"currency": budgets.currency, "budgets": entries}
    last = connection.scalar(
        sa.select(audit_records.c.body)
        .where(audit_records.c.kind == _RECORD)
        .order_by(audit_records.c.number.desc())
        .limit(1)
    )
    if last is not None and orjson.loads(last) == body:
        return False
    chain.append(connection, _RECORD, body, now)
    return True


def _amount(minor: int | None, currency: str) -> str:
    return "-" if minor is None else f"{money.to_decimal(minor, currency):,.{money.decimals(currency)}f}"


def _used_tokens(connection: Connection, first: date, last: date) -> int:
    """Every token stored for these days, also of events that the hours don't have yet."""
    tokens = event_batches.c.prompt_tokens + event_batches.c.completion_tokens
    query = sa.select(whole(sa.func.sum(tokens))).where(event_batches.c.day.between(first, last))
    return connection.execute(query).scalar_one()
