"""Which lines a request is walked to: those that it is part of, and no others."""

from datetime import timedelta

import pytest
from sqlalchemy.engine import Engine

from billing.audit import trace
from billing.ledger import reading
from billing.prices.departments import DepartmentRule
from billing.prices.tariff import Tariff
from tests.billing.days import bring, close
from tests.billing.factories import DAY, a_price, an_event


def test_a_request_that_got_its_price_later_is_found_on_the_bill_that_has_it(ledger: Engine) -> None:
    event = an_event(model="new")
    bring(ledger, [event])
    close(ledger, DAY)
    bring(ledger, [an_event(model="new", prompt_tokens=7)])
    close(ledger, DAY + timedelta(days=1), [a_price(), a_price(model="new")])
    with reading(ledger) as connection:
        lines = trace(connection, event.id).lines
    told = [
        (line["day"].day, line["direction"], line["quantity_tokens"], line["amount_minor"]) for line in lines
    ]
    # What came late is of the same subject: its tokens are on the same lines.
    assert told == [
        (21, "input", 100, None), (21, "output", 20, None),
        (22, "input", -100, None), (22, "input", 107, 9), (22, "output", -20, None), (22, "output", 40, 10),
    ]  # fmt: skip


@pytest.mark.parametrize("rules", [(), (DepartmentRule("user-a", None, "sales", DAY),)])
def test_a_request_is_not_on_the_lines_of_another_department(
    sqlite_ledger: Engine, rules: tuple[DepartmentRule, ...]
) -> None:
    event = an_event(department="media")
    bring(sqlite_ledger, [event, an_event(prompt_tokens=7)])
    close(sqlite_ledger, DAY, tariff=Tariff((a_price(),), (), rules))
    with reading(sqlite_ledger) as connection:
        lines = trace(connection, event.id).lines
    told = [(line["department"], line["direction"], line["quantity_tokens"]) for line in lines]
    whose, prompt, completion = ("sales", 107, 40) if rules else ("media", 100, 20)
    assert told == [(whose, "input", prompt), (whose, "output", completion)]
