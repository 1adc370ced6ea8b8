"""What a day comes to, in tokens and money: in all, and by user, project, department or model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing.aggregates import whole
from billing.errors import LedgerError
from billing.prices.book import kept_tariff
from billing.rating import UNRATED
from billing.selection import EVERYBODY, Whose
from billing.tables import bill_lines, usage_hours

_COUNTED = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens")
Dimension = Literal["user", "project", "department", "model"]
_COLUMNS: dict[Dimension, tuple[str, ...]] = {
    "user": ("user_id",),
    "project": ("project",),
    "department": ("department",),
    "model": ("model", "model_version"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Token sums of a day's usage, and the amount of the bill of that day.

    Cached tokens are part of the prompt's. `amount_minor` is the whole bill in minor units of `currency`,
    corrections of earlier days included, and None when no line has an amount; `corrections_minor` is the
    corrections' part of it. `unrated_tokens` are the day's own tokens that have no price.
    """

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    amount_minor: int | None = None
    corrections_minor: int = 0
    currency: str | None = None
    unrated_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt plus completion tokens."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def own_minor(self) -> int:
        """What the day's own usage costs: the amount without corrections."""
        return (self.amount_minor or 0) - self.corrections_minor

    @property
    def tokens_per_request(self) -> Decimal | None:
        """The average length, None without requests."""
        return Decimal(self.total_tokens) / self.requests if self.requests else None


@dataclass(frozen=True, slots=True)
class Part:
    """One user's, project's, department's or model version's part of a day."""

    key: tuple[str, ...]
    totals: Totals

    @property
    def name(self) -> str:
        """The key as people read it: 'user-a', 'review-sentiment 3'."""
        return " ".join(self.key)


def day_totals(connection: Connection, day: date, whose: Whose = EVERYBODY) -> dict[str, Totals]:
    """The day in all, by owner; who has neither usage nor lines is absent."""
    return {owner: found[0].totals for owner, found in _parts(connection, day, (), whose).items()}


def day_parts(
    connection: Connection, day: date, dimension: Dimension, whose: Whose = EVERYBODY
) -> dict[str, tuple[Part, ...]]:
    """The day by one dimension, most tokens first, by owner; each one's parts sum to their `day_totals`."""
    return {
        owner: tuple(sorted(parts, key=_most_tokens))
        for owner, parts in _parts(connection, day, _COLUMNS[dimension], whose).items()
    }


def _most_tokens(part: Part) -> tuple[int, int, tuple[str, ...]]:
    return -part.totals.total_tokens, -(part.totals.amount_minor or 0), part.key


def sum_parts(parts: Iterable[Part]) -> Totals:
    """Parts of one day put together again, such as "others"."""
    each = [part.totals for part in parts]
    amounts = [totals.amount_minor for totals in each if totals.amount_minor is not None]
    return Totals(
        requests=sum(totals.requests for totals in each),
        prompt_tokens=sum(totals.prompt_tokens for totals in each),
        cached_tokens=sum(totals.cached_tokens for totals in each),
        completion_tokens=sum(totals.completion_tokens for totals in each),
        amount_minor=sum(amounts) if amounts else None,
        corrections_minor=sum(totals.corrections_minor for totals in each),
        currency=next((totals.currency for totals in each if totals.currency), None),
        unrated_tokens=sum(totals.unrated_tokens for totals in each),
    )


def _parts(
    connection: Connection, day: date, columns: tuple[str, ...], whose: Whose
) -> dict[str, list[Part]]:
    tokens = _usage(connection, day, columns, whose)
    amounts = _billed(connection, day, columns, whose)
    found: dict[str, list[Part]] = defaultdict(list)
    for owner, *key in tokens.keys() | amounts.keys():
        sums = tokens.get((owner, *key), {}) | amounts.get((owner, *key), {})
        found[owner].append(Part(tuple(key), Totals(**sums)))
    return found


def _usage(
    connection: Connection, day: date, columns: tuple[str, ...], whose: Whose
) -> dict[tuple[str, ...], dict[str, Any]]:
    """Usage sums by owner and columns."""
    departments = kept_tariff(connection).departments if "department" in columns else None
    # Lines have the department that a rule assigns, by user and project; usage has the event's own.
    known_by = ("user_id", "project", "department") if departments else columns
    keys = [whose.owner(usage_hours).label("owner"), *(usage_hours.c[name] for name in known_by)]
    sums = [whole(sa.func.sum(usage_hours.c[name])) for name in _COUNTED]
    query = sa.select(*keys, *sums).where(usage_hours.c.day == day, *whose.where(usage_hours))
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in connection.execute(_grouped(query, keys)):
        key, counts = tuple(row[: len(keys)]), row[len(keys) :]
        if departments:
            owner, user_id, project, department = key
            key = (owner, departments.assigned(user_id, project, department, day))
        total = found.setdefault(key, dict.fromkeys(_COUNTED, 0))
        for name, count in zip(_COUNTED, counts, strict=True):
            total[name] += count
    return {key: total for key, total in found.items() if total["requests"]}


def _billed(
    connection: Connection, day: date, columns: tuple[str, ...], whose: Whose
) -> dict[tuple[str, ...], dict[str, Any]]:
    """Sums of lines by owner and columns."""
    line = bill_lines.c
    keys = [whose.owner(bill_lines).label("owner"), *(line[name] for name in columns)]
    corrects = line.usage_day < day
    unrated = sa.and_(line.price_id == UNRATED, line.usage_day == day)
    query = sa.select(
        *keys,
        sa.cast(sa.func.sum(line.amount_minor), sa.BigInteger).label("amount_minor"),
        whole(sa.func.sum(sa.case((corrects, line.amount_minor), else_=0))).label("corrections_minor"),
        whole(sa.func.sum(sa.case((unrated, line.quantity_tokens), else_=0))).label("unrated_tokens"),
        sa.func.min(line.currency).label("currency"),
        sa.func.max(line.currency).label("other_currency"),
        sa.func.count().label("lines"),
    ).where(line.day == day, *whose.where(bill_lines))
    found = {}
    for row in connection.execute(_grouped(query, keys)).mappings():
        if row["currency"] != row["other_currency"]:
            raise LedgerError(
                "currencies_mixed",
                f"the bill of {day} is in {row['currency']} and in {row['other_currency']}; "
                "amounts in two currencies can't be added",
            )
        if row["lines"]:
            names = ("amount_minor", "corrections_minor", "unrated_tokens", "currency")
            key = tuple(row[name] for name in ("owner", *columns))
            found[key] = {name: row[name] for name in names}
    return found


def _grouped(query: sa.Select[Any], keys: list[Any]) -> sa.Select[Any]:
    return query.group_by(*by_owner(keys[0]), *keys[1:])


def by_owner(owner: sa.ColumnElement[Any]) -> list[sa.ColumnElement[Any]]:
    """What to group by for a `Whose.owner`: nothing when that is a constant."""
    constant = isinstance(getattr(owner, "element", owner), sa.BindParameter)
    return [] if constant else [owner]
