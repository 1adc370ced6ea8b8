"""What lines bill for days of usage, closed and drafted, by project, department or model."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing.aggregates import whole
from billing.errors import LedgerError
from billing.rating import UNRATED
from billing.tables import ON_ITS_BILL, bill_days, bill_lines


class Billed(NamedTuple):
    """One name's lines for one day of usage, over all bills; `amount_minor` includes `draft_minor`."""

    usage_day: date
    name: str
    amount_minor: int
    draft_minor: int
    tokens: int
    unrated_tokens: int


def billed_by(
    connection: Connection, first: date, last: date, column: sa.Column[Any], currency: str
) -> Iterator[Billed]:
    """What is billed for usage from `first` to `last`, both included, by a column of `bill_lines`.

    Raises: LedgerError: a line is in another currency (code currencies_mixed): it can't be compared.
    """
    line = bill_lines.c
    draft = sa.case((bill_days.c.state == "draft", line.amount_minor), else_=0)
    unrated = sa.case((line.price_id == UNRATED, line.quantity_tokens), else_=0)
    sums = [whole(sa.func.sum(each)) for each in (line.amount_minor, draft, line.quantity_tokens, unrated)]
    query = (
        sa.select(line.usage_day, column, sa.func.min(line.currency), sa.func.max(line.currency), *sums)
        .join_from(bill_lines, bill_days, ON_ITS_BILL)
        .where(line.usage_day.between(first, last))
        .group_by(line.usage_day, column)
        .order_by(line.usage_day, column)
    )
    for usage_day, name, least, greatest, *amounts in connection.execute(query):
        for found in (least, greatest):
            if found not in (None, currency):
                raise LedgerError(
                    "currencies_mixed",
                    f"{usage_day} is billed in {found}, which can't be compared with amounts in {currency}",
                )
        yield Billed(usage_day, name, *amounts)
