"""What later bills make of usage that came late, got its price late, or crossed into another tier."""

from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from billing.audit import verify
from billing.billed import billed_by
from billing.ledger import reading
from billing.month_proof import prove_months
from billing.owing import looked_through
from billing.prices.departments import DepartmentRule
from billing.prices.discounts import Discount
from billing.prices.price_list import Price, Tier
from billing.prices.tariff import Tariff
from billing.retention import drop_events
from billing.tables import bill_lines
from tallybook.usage import UsageEvent
from tests.billing.days import at, bring, close, draft
from tests.billing.factories import DAY, a_price, an_event

NEXT = DAY + timedelta(days=1)
THIRD = DAY + timedelta(days=2)
FLAT = Tariff((a_price(),))
STEPS = (Tier(1000, Decimal("0.80")), Tier(None, Decimal("0.50")))
VOLUME = Tariff((a_price(tiers="volume", input=STEPS),))
GRADUATED = Tariff((a_price(tiers="graduated", input=STEPS),))


def used(day: date, prompt_tokens: int, **changes: object) -> UsageEvent:
    return an_event(time=at(day), prompt_tokens=prompt_tokens, completion_tokens=0, **changes)


def lines(ledger: Engine, day: date, *names: str) -> list[tuple[object, ...]]:
    """(usage day, direction, …names…, tokens, amount) of a bill's lines."""
    columns = ("usage_day", "direction", *names, "quantity_tokens", "amount_minor")
    query = sa.select(*[bill_lines.c[name] for name in columns]).where(bill_lines.c.day == day)
    with reading(ledger) as connection:
        prove_months(connection)
        return sorted(map(tuple, connection.execute(query)), key=repr)


def test_rounding_is_carried_through_the_month_and_begins_anew_with_the_next(sqlite_ledger: Engine) -> None:
    days = [date(2026, 10, 29), date(2026, 10, 30), date(2026, 10, 31), date(2026, 11, 1)]
    for day in days:
        bring(sqlite_ledger, [used(day, 6)])  # 0.0048
        close(sqlite_ledger, day)
    assert [lines(sqlite_ledger, day)[0][-1] for day in days] == [0, 1, 0, 0]


def test_graduated_tiers_are_filled_through_the_month(sqlite_ledger: Engine) -> None:
    for day, tokens in ((DAY, 700), (NEXT, 700)):
        bring(sqlite_ledger, [used(day, tokens)])
        close(sqlite_ledger, day, tariff=GRADUATED)
    assert lines(sqlite_ledger, DAY, "tier") == [(DAY, "input", 0, 700, 56)]
    assert lines(sqlite_ledger, NEXT, "tier") == [(NEXT, "input", 0, 300, 24), (NEXT, "input", 1, 400, 20)]


def test_a_late_event_that_crosses_a_volume_tier_takes_the_months_tokens_with_it(ledger: Engine) -> None:
    bring(ledger, [used(DAY, 900)])
    close(ledger, DAY, tariff=VOLUME)
    bring(ledger, [used(DAY, 300), used(NEXT, 100)])
    closing = close(ledger, NEXT, tariff=VOLUME)
    # 900 tokens leave the first tier; 1,200 are in the second, then 100 more.
    assert lines(ledger, NEXT, "tier", "tokens_before") == [
        (DAY, "input", 0, 900, -900, -72),
        (DAY, "input", 1, 0, 1200, 60),
        (NEXT, "input", 1, 1200, 100, 5),
    ]
    assert (closing.proof.line_tokens, closing.proof.amount_minor) == (400, -7)


def test_tiers_count_each_payers_tokens_apart(sqlite_ledger: Engine) -> None:
    bring(sqlite_ledger, [used(DAY, 800), used(DAY, 800, user="user-b"), used(DAY, 800, project="ads")])
    close(sqlite_ledger, DAY, tariff=GRADUATED)
    assert lines(sqlite_ledger, DAY, "tier") == [(DAY, "input", 0, 800, 64)] * 3


def test_versions_of_a_model_fill_the_tiers_of_its_price_together(sqlite_ledger: Engine) -> None:
    bring(sqlite_ledger, [used(DAY, 800), used(DAY, 800, model_version="2")])
    close(sqlite_ledger, DAY, tariff=GRADUATED)
    assert lines(sqlite_ledger, DAY, "model_version", "tier") == [
        (DAY, "input", "1", 0, 800, 64),
        (DAY, "input", "2", 0, 200, 16),
        (DAY, "input", "2", 1, 600, 30),
    ]


def test_a_correction_is_on_one_of_several_drafts(sqlite_ledger: Engine) -> None:
    def billed() -> list[tuple[int, int]]:
        with reading(sqlite_ledger) as connection:
            found = billed_by(connection, DAY, THIRD, bill_lines.c.project, "CNY")
            return [(each.amount_minor, each.tokens) for each in found]

    bring(sqlite_ledger, [used(DAY, 10_000)])
    close(sqlite_ledger, DAY)
    bring(sqlite_ledger, [used(DAY, 1000)])  # late
    for work in (draft, close):
        for day in (THIRD, NEXT):
            work(sqlite_ledger, day)
            assert billed() == [(880, 11_000)]


def test_a_days_draft_goes_on_from_its_own_corrections(ledger: Engine) -> None:
    close(ledger, DAY, tariff=GRADUATED)
    bring(ledger, [used(DAY, 800), used(NEXT, 800)])
    assert draft(ledger, NEXT, GRADUATED.prices) == 3
    close(ledger, NEXT, tariff=GRADUATED)
    assert lines(ledger, NEXT, "tier") == [
        (DAY, "input", 0, 800, 64),
        (NEXT, "input", 0, 200, 16),
        (NEXT, "input", 1, 600, 30),
    ]


LONG, URGENT = (
    a_price(context_band=32_769, input=Decimal(8)),
    a_price(latency_class="priority", input=Decimal(4)),
)
CANARY = a_price(model_label="canary", input=Decimal(2))


def test_each_request_has_the_price_of_its_length_its_class_and_its_label(ledger: Engine) -> None:
    bring(
        ledger,
        [
            used(DAY, 32_768),
            used(DAY, 32_769),
            used(DAY, 1000, latency_class="priority"),
            used(DAY, 1000, latency_class="batch"),
            used(DAY, 1000, model_label="canary"),
        ],
    )
    tariff = Tariff((a_price(), LONG, URGENT, CANARY))
    close(ledger, DAY, tariff=tariff)
    assert lines(ledger, DAY, "latency_class", "context_band", "model_label") == [
        (DAY, "input", "batch", 0, "", 1000, 80),
        (DAY, "input", "priority", 0, "", 1000, 400),
        (DAY, "input", "standard", 0, "", 32_768, 2621),
        (DAY, "input", "standard", 0, "canary", 1000, 200),
        (DAY, "input", "standard", 32_769, "", 32_769, 26_215),
    ]


def test_unrated_tokens_get_their_price_tiers_and_discount_as_corrections(ledger: Engine) -> None:
    bring(ledger, [used(DAY, 1500)])
    assert close(ledger, DAY, ()).proof.unrated_tokens == 1500
    assert lines(ledger, DAY) == [(DAY, "input", 1500, None)]
    priced = replace(GRADUATED, discounts=(Discount("retail", None, Decimal(10), DAY),))
    bring(ledger, [used(DAY, 500)])  # and some more comes late
    closing = close(ledger, NEXT, tariff=priced)
    assert lines(ledger, NEXT, "tier", "discount_percent") == [
        (DAY, "input", 0, "0", -1500, None),
        (DAY, "input", 0, "10", 1000, 72),
        (DAY, "input", 1, "10", 1000, 45),
    ]
    assert (closing.proof.unrated_tokens, closing.proof.line_tokens) == (-1500, 500)
    assert close(ledger, THIRD, tariff=priced).lines == 0


def test_a_day_before_the_first_price_stays_unrated(sqlite_ledger: Engine) -> None:
    bring(sqlite_ledger, [used(DAY, 100), used(NEXT, 100)])
    for day in (DAY, NEXT, THIRD):
        close(sqlite_ledger, day, [a_price(effective_from=NEXT)])
    assert lines(sqlite_ledger, DAY) == [(DAY, "input", 100, None)]
    assert lines(sqlite_ledger, NEXT) == [(NEXT, "input", 100, 8)]
    assert lines(sqlite_ledger, THIRD) == []


def test_a_price_for_some_of_the_unrated_leaves_the_rest(sqlite_ledger: Engine) -> None:
    bring(sqlite_ledger, [used(DAY, 100), used(DAY, 200, model="m2"), used(DAY, 300, latency_class="batch")])
    close(sqlite_ledger, DAY, ())
    close(sqlite_ledger, NEXT, [a_price(latency_class="batch")])
    assert lines(sqlite_ledger, NEXT, "latency_class") == [
        (DAY, "input", "batch", -300, None),
        (DAY, "input", "batch", 300, 24),
    ]


def test_unrated_tokens_are_looked_at_again_only_after_an_import(ledger: Engine) -> None:
    """However old the ledger grows, closing a day does not read all that never got a price."""
    bring(ledger, [used(DAY, 100, model="m2"), used(NEXT, 100)])
    looked = []
    before = DAY - timedelta(days=1)
    for day, prices in ((DAY, ()), (NEXT, (a_price(),)), (before, (a_price(),)), (THIRD, (a_price(),))):
        close(ledger, day, prices)
        with reading(ledger) as connection:
            looked.append(looked_through(connection))
    assert looked == [DAY, NEXT, NEXT, THIRD]


def test_a_day_closed_out_of_turn_after_an_import_leaves_no_priced_tokens_behind(ledger: Engine) -> None:
    bring(ledger, [used(DAY, 100), used(NEXT, 100)])
    for day in (DAY, NEXT):
        close(ledger, day, ())
    assert close(ledger, DAY - timedelta(days=1)).lines == 0  # the price is there now
    close(ledger, THIRD)
    assert lines(ledger, THIRD) == [
        (day, "input", *rest) for day in (DAY, NEXT) for rest in ((-100, None), (100, 8))
    ]


SALES = DepartmentRule("user-a", None, "sales", NEXT)


def test_a_rule_says_who_pays_from_its_day_on_for_late_usage_too(ledger: Engine) -> None:
    tariff = replace(FLAT, rules=(SALES,), discounts=(Discount("sales", None, Decimal(50), DAY),))
    bring(ledger, [used(DAY, 1000), used(NEXT, 1000), used(NEXT, 1000, department="other")])
    close(ledger, DAY, tariff=tariff)
    close(ledger, NEXT, tariff=tariff)
    bring(ledger, [used(DAY, 2000), used(NEXT, 2000)])
    close(ledger, THIRD, tariff=tariff)
    assert lines(ledger, DAY, "department") == [(DAY, "input", "retail", 1000, 80)]
    assert lines(ledger, NEXT, "department") == [(NEXT, "input", "sales", 2000, 80)]
    assert lines(ledger, THIRD, "department") == [
        (DAY, "input", "retail", 2000, 160),
        (NEXT, "input", "sales", 2000, 80),
    ]


LEAST = a_price(minimum=Decimal("0.10"))


def test_a_minimum_tops_requests_up_one_by_one(sqlite_ledger: Engine) -> None:
    bring(sqlite_ledger, [used(DAY, 100), used(DAY, 100), used(DAY, 5000), used(DAY, 0, status=500)])
    closing = close(sqlite_ledger, DAY, [LEAST])
    # Two requests of 0.08 lack 0.02 each; the third is dear enough, the fourth failed.
    assert lines(sqlite_ledger, DAY, "quantity_requests", "unit_price") == [
        (DAY, "input", 0, "0.80", 5200, 416),
        (DAY, "minimum", 2, "0.10", 0, 4),
    ]
    assert closing.proof.amount_minor == 420


@pytest.mark.parametrize("first", [[], [LEAST]])
def test_late_and_newly_priced_requests_are_topped_up_too(ledger: Engine, first: list[Price]) -> None:
    bring(ledger, [used(DAY, 3)])  # lacks 0.0976
    close(ledger, DAY, first)
    bring(ledger, [used(DAY, 3)])
    close(ledger, NEXT, [LEAST])
    close(ledger, THIRD, [LEAST])
    minimums = [line for day in (DAY, NEXT, THIRD) for line in lines(ledger, day) if line[1] == "minimum"]
    assert sum(int(str(line[-1])) for line in minimums) == 20  # 0.1952, rounded once
    assert len(minimums) == (2 if first else 1)


def test_a_price_with_a_minimum_leaves_bills_proven_before_it_is_billed(sqlite_ledger: Engine) -> None:
    prices = [a_price(minimum=Decimal("0.05"))]
    bring(sqlite_ledger, [used(DAY, 1)])
    close(sqlite_ledger, DAY, ())
    for bill in (draft, close):  # a draft has imported it, and bills nothing yet
        bill(sqlite_ledger, NEXT, prices)
        with reading(sqlite_ledger) as connection:
            verify(connection)
    assert sum(int(str(line[-1] or 0)) for line in lines(sqlite_ledger, NEXT)) == 5


def test_a_day_of_many_users_is_rated_in_stretches_of_users(
    ledger: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("billing.owing._ROWS_AT_ONCE", 2)
    events = [used(DAY, 600, user=f"user-{n % 7}", model_version=str(n % 2)) for n in range(14)]
    bring(ledger, events)
    close(ledger, DAY, tariff=GRADUATED)
    bring(ledger, [used(NEXT, 600, user=f"user-{n}") for n in range(7)])
    close(ledger, NEXT, tariff=GRADUATED)
    assert sum(int(str(line[-1])) for line in lines(ledger, DAY)) == 7 * 90
    assert sum(int(str(line[-1])) for line in lines(ledger, NEXT)) == 7 * 30


def test_what_comes_for_a_day_whose_events_were_dropped_is_billed_by_itself(ledger: Engine) -> None:
    bring(ledger, [used(DAY, 100), used(DAY, 100)])
    close(ledger, DAY, [LEAST])
    assert [found.events for found in drop_events(ledger, NEXT)] == [2]
    bring(ledger, [used(DAY, 100)])
    closing = close(ledger, NEXT, [LEAST])
    assert lines(ledger, NEXT, "quantity_requests") == [
        (DAY, "input", 0, 100, 8),
        (DAY, "minimum", 1, 0, 2),
    ]
    assert (closing.proof.requests, closing.proof.line_tokens) == (1, 100)
    assert close(ledger, DAY, [LEAST]).proof.line_tokens == 200
