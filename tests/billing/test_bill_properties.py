"""Sum of lines = price of sums, under every split of the events over days, bills, order and repetition."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.ledger import open_ledger, reading
from billing.lines import Rater
from billing.money import charge
from billing.month_proof import prove_months
from billing.prices.departments import DepartmentRule
from billing.prices.discounts import Discount
from billing.prices.price_list import Tier
from billing.prices.tariff import Tariff
from billing.rating import DIRECTIONS, Terms, context_band, quantities
from billing.tables import SUBJECT, bill_lines
from tallybook.usage import UsageEvent
from tests.billing.conftest import TIME_ZONE, copy_of, forgetful
from tests.billing.days import at, bring, close
from tests.billing.factories import a_price, an_event

START = date(2026, 10, 30)  # so that three days of usage are in two months
DAYS = [START + timedelta(days=number) for number in range(4)]


def steps(*unit_prices: str) -> tuple[Tier, ...]:
    """Tiers of 1,500 tokens."""
    *below, last = unit_prices
    tiers = [Tier(1500 * number, Decimal(price)) for number, price in enumerate(below, 1)]
    return (*tiers, Tier(None, Decimal(last)))


TARIFF = Tariff(
    (
        a_price(),
        a_price(
            model="graduated", tiers="graduated", input=steps("0.80", "0.33", "0.07"), output=steps("3", "2")
        ),
        a_price(model="volume", tiers="volume", input=steps("0.80", "0.33", "0.07")),
        a_price(model="volume", context_band=32_769, input=Decimal("1.7")),
        a_price(model="volume", latency_class="batch", input=Decimal("0.01")),
        a_price(model="later", effective_from=DAYS[1]),
    ),
    (Discount("retail", None, Decimal("12.5"), START), Discount("sales", "volume", Decimal(7), DAYS[1])),
    (DepartmentRule("u2", None, "sales", DAYS[1]),),
)


@st.composite
def usage(draw: st.DrawFn) -> UsageEvent:
    prompt = draw(st.one_of(st.integers(0, 2000), st.just(40_000)))
    return an_event(
        time=at(START + timedelta(days=draw(st.integers(0, 2)))),
        user=draw(st.sampled_from(["u1", "u2"])),
        model=draw(st.sampled_from(["review-sentiment", "graduated", "volume", "later", "unpriced"])),
        latency_class=draw(st.sampled_from(["standard", "batch"])),
        prompt_tokens=prompt,
        cached_tokens=draw(st.integers(0, prompt)),
        completion_tokens=draw(st.integers(0, 2000)),
    )


@settings(max_examples=15)
@given(st.data())
def test_every_token_is_on_exactly_one_bill_at_its_price_whatever_arrives_when(
    sqlite_template: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Events of three days come in any order, repeated, around four closings; prices may come late too."""
    events = data.draw(st.lists(usage(), min_size=1, max_size=12))
    arrivals: list[list[UsageEvent]] = [[], [], [], []]
    for event in [*events, *data.draw(st.lists(st.sampled_from(events), max_size=4))]:
        arrivals[data.draw(st.integers(0, 3))].append(event)
    priced_on = data.draw(st.integers(0, 3))
    with copy_of(sqlite_template, tmp_path_factory.mktemp("property")) as url:
        ledger = forgetful(open_ledger(url, TIME_ZONE))
    for number, (day, arrived) in enumerate(zip(DAYS, arrivals, strict=True)):
        bring(ledger, arrived)
        # The department rules are there from the start: they, too, never change the past.
        tariff = TARIFF if number >= priced_on else replace(TARIFF, prices=())
        proof = close(ledger, day, tariff=tariff).proof
        assert proof.event_tokens == proof.aggregate_tokens == proof.line_tokens
    line = bill_lines.c
    account = (
        line.user_id,
        line.project,
        line.department,
        line.direction,
        line.price_id,
        line.discount_percent,
    )
    tokens: dict[tuple[object, ...], int] = defaultdict(int)
    amounts: dict[tuple[object, ...], int] = defaultdict(int)
    by_subject: dict[tuple[object, ...], int] = defaultdict(int)
    with reading(ledger) as connection:
        prove_months(connection)
        columns = (line.usage_day, *account, line.model, line.quantity_tokens, line.amount_minor)
        for day, *key, model, quantity, amount in connection.execute(sa.select(*columns)):
            month = (day.replace(day=1), *key)
            tokens[month] += quantity
            amounts[month] += amount or 0
            by_subject[(day, *key[:3], model, key[3])] += quantity
    ledger.dispose()
    wanted_tokens, wanted_amounts, wanted_subjects = priced(events)
    assert nonzero(tokens) == nonzero(wanted_tokens)
    assert nonzero(amounts) == nonzero(wanted_amounts)
    assert nonzero(by_subject) == nonzero(wanted_subjects)


def priced(events: list[UsageEvent]) -> tuple[Mapping[tuple[object, ...], int], ...]:
    """What a month's tokens cost when they are all there at once: by account, and by day and subject."""
    tokens: dict[tuple[object, ...], int] = defaultdict(int)
    amounts: dict[tuple[object, ...], int] = {}
    by_subject: dict[tuple[object, ...], int] = defaultdict(int)
    at_terms: dict[tuple[object, ...], Terms] = {}
    for e in events:
        day = e.time.astimezone(at(START).tzinfo).date()
        rater = Rater(TARIFF, day)
        said = {"user_id": e.user, "project": e.project, "department": e.department, "model": e.model}
        said |= {"model_version": e.model_version, "model_label": e.model_label or ""}
        subject = rater.subject([*(said[n] for n in SUBJECT), e.latency_class, context_band(e.prompt_tokens)])
        terms = rater.terms(subject)
        used = quantities(e.prompt_tokens, e.cached_tokens, e.completion_tokens)
        for number, (direction, quantity) in enumerate(zip(DIRECTIONS, used, strict=True)):
            price = (terms[number].price_id, terms[number].discount) if terms else ("", "0")
            key = (day.replace(day=1), *subject[:3], direction, *price)
            tokens[key] += quantity
            by_subject[(day, *subject[:3], e.model, direction)] += quantity
            if terms:
                at_terms[key] = terms[number]
    for account, at_price in at_terms.items():
        spread = at_price.spread(tokens[account])
        amounts[account] = sum(charge(n, price) for n, price in zip(spread, at_price.exact, strict=True))
    return tokens, amounts, by_subject


def nonzero(sums: Mapping[tuple[object, ...], int]) -> dict[tuple[object, ...], int]:
    return {key: value for key, value in sums.items() if value}
