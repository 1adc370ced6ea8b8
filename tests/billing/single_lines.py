"""Single bill lines put straight into the ledger, for tests of what only adds them up."""

from __future__ import annotations

from datetime import date
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing.ledger import insert
from billing.tables import bill_days, bill_lines


def put_bill_day(connection: Connection, day: date, state: str = "closed") -> None:
    """A bill's day, unless it is there."""
    statement = insert(connection, bill_days).values(day=day, state=state, early=False)
    connection.execute(statement.on_conflict_do_nothing())


def put_line(connection: Connection, day: date, amount_minor: int | None, **changes: Any) -> None:
    """A line of the bill of a day, in CNY; unrated without an amount. The bill's day must be there."""
    required = [column for column in bill_lines.c if not column.nullable]
    row: dict[str, Any] = {c.name: 0 if isinstance(c.type, sa.Integer) else "" for c in required}
    row |= {
        "day": day, "usage_day": day, "user_id": "user-a", "project": "search", "department": "retail",
        "model": "review-sentiment", "model_version": "1", "direction": "input", "discount_percent": "0",
        "price_id": "" if amount_minor is None else "price", "amount_minor": amount_minor,
        "currency": None if amount_minor is None else "CNY",
    }  # fmt: skip
    connection.execute(bill_lines.insert().values(**row | changes))
