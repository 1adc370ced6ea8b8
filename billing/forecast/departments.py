"""What departments used, by who pays: as bills have them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from datetime import date

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing.aggregates import whole
from billing.day_sums import History
from billing.prices.book import kept_tariff
from billing.tables import department_rules, usage_hours


def by_payer(connection: Connection, told: History) -> History:
    """The history of departments, in which tokens are those of the department that a rule assigns them to.

    `told` has them where the events say; only users and projects that have a rule are read again.
    """
    departments = kept_tariff(connection).departments
    if not departments:
        return told
    hours, rule = usage_hours.c, department_rules.c
    users, projects = (
        sa.select(column).where(column.is_not(None), rule.withdrawn_at.is_(None))
        for column in (rule.user_id, rule.project)
    )
    keys = (hours.day, hours.user_id, hours.project, hours.department)
    tokens = whole(sa.func.sum(hours.prompt_tokens + hours.completion_tokens))
    query = sa.select(*keys, tokens).where(
        hours.day.between(told.days[0], told.days[-1]),
        sa.or_(hours.user_id.in_(users), hours.project.in_(projects)),
    )
    moved: dict[str, dict[date, int]] = defaultdict(lambda: defaultdict(int))
    for day, user, project, department, count in connection.execute(query.group_by(*keys)):
        moved[department][day] -= count
        moved[departments.assigned(user, project, department, day)][day] += count
    place = {day: number for number, day in enumerate(told.days)}
    rows = dict(zip(told.names, told.tokens.copy(), strict=True))
    for name, counts in moved.items():
        row = rows.setdefault(name, np.zeros(len(told.days), np.int64))
        for day, count in counts.items():
            row[place[day]] += count
    names = sorted(name for name, row in rows.items() if row.any())
    kept = np.array([rows[name] for name in names], np.int64).reshape(len(names), len(told.days))
    return replace(told, names=names, tokens=kept)
