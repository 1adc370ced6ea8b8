import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from billing.errors import ClosureError
from billing.ledger import reading, writing
from billing.month_proof import prove_months
from billing.tables import bill_lines, bill_totals, prices
from tests.billing.days import at, bring, close, draft
from tests.billing.factories import DAY, an_event
from tests.billing.test_corrections import GRADUATED, NEXT, THIRD, used


@pytest.fixture
def closed(sqlite_ledger: Engine) -> Engine:
    """Two closed days and a draft, in two tiers, with unrated tokens."""
    ledger = sqlite_ledger
    for day in (DAY, NEXT):
        bring(ledger, [used(day, 700), an_event(time=at(day), model="unpriced")])
        close(ledger, day, tariff=GRADUATED)
    bring(ledger, [used(THIRD, 700)])
    draft(ledger, THIRD, GRADUATED.prices)
    return ledger


def prove(ledger: Engine) -> int:
    with reading(ledger) as connection:
        return prove_months(connection)


def test_the_lines_of_a_month_sum_to_the_price_of_its_tokens(closed: Engine) -> None:
    assert prove(closed) == 1


LINE, TOTAL = bill_lines.c, bill_totals.c
FIRST_TIER = sa.and_(TOTAL.direction == "input", TOTAL.tier == 0, TOTAL.price_id != "")
OF_NOTHING = {"user_id": "user-x", "quantity_tokens": 0, "amount_minor": 0}
NOTHING = sa.select(*[sa.literal(OF_NOTHING[c.name]) if c.name in OF_NOTHING else c for c in TOTAL])
ON_FIRST_BILL = sa.and_(LINE.day == DAY, LINE.direction == "input", LINE.price_id != "")


@pytest.mark.parametrize(
    ("tampering", "where"),
    [
        ([bill_lines.update().where(ON_FIRST_BILL).values(amount_minor=99)], r"\+43 minor units"),
        ([bill_lines.update().where(ON_FIRST_BILL).values(quantity_tokens=701)], r"\+1 tokens"),
        ([bill_lines.delete().where(ON_FIRST_BILL)], "-700 tokens"),
        ([bill_lines.update().where(ON_FIRST_BILL).values(user_id="user-x")], "user user-"),
        ([bill_totals.update().where(FIRST_TIER).values(amount_minor=99)], "-19 minor units"),
        ([bill_totals.delete().where(TOTAL.price_id == "")], "unrated|tokens"),
        # Of nothing: what comes next would be added to it.
        (
            [bill_totals.insert().from_select(TOTAL.keys(), NOTHING.where(FIRST_TIER))],
            "user user-x, .* there are no lines",
        ),
        (
            [bill_totals.update().where(TOTAL.price_id == "").values(amount_minor=0)],
            "one of them has an amount",
        ),
        # Lines and totals agree, but not with the price.
        (
            [
                bill_lines.update().where(ON_FIRST_BILL).values(amount_minor=LINE.amount_minor + 1),
                bill_totals.update().where(FIRST_TIER).values(amount_minor=TOTAL.amount_minor + 1),
            ],
            "1000 tokens cost 80 minor units, not 81",
        ),
        (
            [
                bill_lines.update().where(ON_FIRST_BILL).values(tier=1),
                bill_totals.update().where(FIRST_TIER).values(quantity_tokens=300, amount_minor=24),
                bill_totals.update()
                .where(TOTAL.tier == 1)
                .values(quantity_tokens=TOTAL.quantity_tokens + 700, amount_minor=TOTAL.amount_minor + 56),
            ],
            "of 1400 tokens, 1000 belong into tier 1",
        ),
        ([prices.delete()], "is unknown"),
    ],
)
def test_a_month_that_does_not_add_up_is_named(
    closed: Engine, tampering: list[sa.Executable], where: str
) -> None:
    with writing(closed) as connection:
        for statement in tampering:
            connection.execute(statement)
    with pytest.raises(ClosureError, match=where) as found:
        prove(closed)
    assert found.value.code == "closure_mismatch"
    assert str(found.value).startswith(f"{DAY:%Y-%m}, user user-")
