"""Departments by rule: who pays for a project or a user from a day on, whatever the event said. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date

from billing.prices.effective import Effective


@dataclass(frozen=True, slots=True)
class DepartmentRule:
    """From a billing day on, `department` pays for this user, this project, or this user in this project."""

    user: str | None
    project: str | None
    department: str
    effective_from: date

    @property
    def id(self) -> str:
        """Digest of the terms."""
        terms = (self.user, self.project, self.department, self.effective_from.isoformat())
        return hashlib.sha256(repr(terms).encode()).hexdigest()[:16]


class Departments:
    """Every rule, asked by user, project and day."""

    def __init__(self, rules: Iterable[DepartmentRule]) -> None:
        self._rules = Effective(((r.user, r.project), r.effective_from, r.department) for r in rules)

    def __bool__(self) -> bool:
        return bool(self._rules)

    def assigned(self, user: str, project: str, department: str, day: date) -> str:
        """Who pays on this billing day: the department of the most specific rule, else the event's own."""
        if not self._rules:
            return department
        for key in ((user, project), (user, None), (None, project)):
            found = self._rules.on(key, day)
            if found is not None:
                return found
        return department
