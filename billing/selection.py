"""Whose usage and bills are meant: everybody's, one user's or project's, or those of many owners apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import sqlalchemy as sa

OwnerKind = Literal["user", "project"]
_COLUMNS = {"user": "user_id", "project": "project", "department": "department"}


class Whose(Protocol):
    """What a query is restricted to, and whose each of its rows is."""

    def where(self, table: sa.Table) -> list[sa.ColumnElement[bool]]:
        """The rows that are meant."""

    def owner(self, table: sa.Table) -> sa.ColumnElement[Any]:
        """The owner of a row; the same for all where they are summed together."""


@dataclass(frozen=True)
class Selection:
    """One user's, project's or department's, or what several of these have in common; else everybody's.

    The owner of all of it is "".
    """

    user: str | None = None
    project: str | None = None
    department: str | None = None

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self._named()) or "everybody"

    def where(self, table: sa.Table) -> list[sa.ColumnElement[bool]]:
        """The rows that it selects."""
        return [table.c[_COLUMNS[name]] == value for name, value in self._named()]

    def owner(self, table: sa.Table) -> sa.ColumnElement[Any]:
        """All rows are summed together."""
        return sa.literal("")

    def _named(self) -> list[tuple[str, str]]:
        named = (("user", self.user), ("project", self.project), ("department", self.department))
        return [(name, value) for name, value in named if value is not None]


@dataclass(frozen=True)
class Owners:
    """Several users, or several projects, each apart."""

    kind: OwnerKind
    names: tuple[str, ...]

    def where(self, table: sa.Table) -> list[sa.ColumnElement[bool]]:
        """Their rows."""
        return [self.owner(table).in_(self.names)]

    def owner(self, table: sa.Table) -> sa.ColumnElement[Any]:
        """The user or the project."""
        return table.c[_COLUMNS[self.kind]]


EVERYBODY = Selection()
