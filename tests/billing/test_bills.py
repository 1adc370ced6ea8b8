from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from billing import wallets
from billing.bills import Closing, close_day, rate_day
from billing.errors import ClosureError, DayError, PricesError
from billing.ingest import ingest
from billing.ledger import open_ledger, reading, writing
from billing.prices.book import sync_prices
from billing.prices.price_list import Price
from billing.prices.tariff import Tariff
from billing.tables import bill_days, bill_lines, event_batches, usage_events, usage_hours
from tallybook.usage import UsageEvent
from tests.billing.factories import AFTER, DAY, NOON, ZONE, a_price, an_event, write_segment

NEXT = DAY + timedelta(days=1)
AFTER_NEXT = AFTER + timedelta(days=1)


def close(
    ledger: Engine,
    day: date = DAY,
    *,
    prices: Sequence[Price] = (a_price(),),
    now: datetime = AFTER,
    early: bool = False,
) -> Closing:
    with writing(ledger) as connection:
        return close_day(
            connection, day, sync_prices(connection, Tariff(tuple(prices))), ZONE, early=early, now=now
        )


def draft(ledger: Engine, day: date = DAY) -> int:
    with writing(ledger) as connection:
        return rate_day(connection, day, sync_prices(connection, Tariff((a_price(),)))).lines


def bring(ledger: Engine, journal: Path, *events: UsageEvent) -> None:
    write_segment(journal, events)
    ingest(ledger, journal, ZONE)


def lines(ledger: Engine, day: date = DAY) -> list[tuple[object, ...]]:
    """(usage day, user, direction, tokens, amount) of the day's bills."""
    c = bill_lines.c
    query = sa.select(c.usage_day, c.user_id, c.direction, c.quantity_tokens, c.amount_minor)
    with reading(ledger) as connection:
        return sorted(map(tuple, connection.execute(query.where(c.day == day))), key=repr)


def test_a_day_is_billed_by_user_project_and_direction(ledger: Engine, tmp_path: Path) -> None:
    bring(
        ledger, tmp_path, an_event(), an_event(cached_tokens=40), an_event(user="user-b", completion_tokens=0)
    )
    closing = close(ledger)
    assert lines(ledger) == [
        (DAY, "user-a", "cached_input", 40, 1),
        (DAY, "user-a", "input", 160, 13),
        (DAY, "user-a", "output", 40, 10),
        (DAY, "user-b", "input", 100, 8),
    ]
    proof = closing.proof
    assert (proof.requests, proof.event_tokens, proof.aggregate_tokens, proof.line_tokens) == (
        3,
        340,
        340,
        340,
    )
    assert (proof.amount_minor, proof.currency, proof.unrated_tokens) == (32, "CNY", 0)


def test_a_line_keeps_its_price_version_and_terms(ledger: Engine, tmp_path: Path) -> None:
    bring(ledger, tmp_path, an_event(completion_tokens=0))
    close(ledger)
    with reading(ledger) as connection:
        line = connection.execute(sa.select(bill_lines)).one()
    assert (line.price_id, line.unit_price, line.per_tokens, line.currency) == (
        a_price().id, "0.80", 1000, "CNY",
    )  # fmt: skip


def test_rating_twice_gives_the_same_draft(ledger: Engine, tmp_path: Path) -> None:
    bring(ledger, tmp_path, an_event(), an_event(user="user-b"))
    assert draft(ledger) == 4
    first = lines(ledger)
    assert draft(ledger) == 4
    assert lines(ledger) == first


def test_a_draft_follows_the_usage_until_it_is_closed(ledger: Engine, tmp_path: Path) -> None:
    bring(ledger, tmp_path, an_event(completion_tokens=0))
    draft(ledger)
    bring(ledger, tmp_path, an_event(completion_tokens=0))
    assert close(ledger).proof.line_tokens == 200


def test_closing_twice_changes_nothing_and_proves_again(ledger: Engine, tmp_path: Path) -> None:
    bring(ledger, tmp_path, an_event())
    first = close(ledger)
    before = lines(ledger)
    again = close(ledger, now=AFTER_NEXT)
    assert (first.newly_closed, again.newly_closed) == (True, False)
    assert lines(ledger) == before
    assert again.proof == first.proof
    assert draft(ledger) == len(before)
    assert lines(ledger) == before


def test_a_day_is_closed_when_it_is_over(ledger: Engine, tmp_path: Path) -> None:
    bring(ledger, tmp_path, an_event())
    for now, code in [(NOON, "day_not_over"), (NOON - timedelta(days=1), "day_in_future")]:
        with pytest.raises(DayError) as refused:
            close(ledger, now=now)
        assert refused.value.code == code
    assert lines(ledger) == []
    close(ledger, now=NOON, early=True)
    with reading(ledger) as connection:
        assert connection.execute(sa.select(bill_days.c.state, bill_days.c.early)).one() == ("closed", True)


def test_a_day_without_usage_is_closed_with_an_empty_bill(ledger: Engine) -> None:
    closing = close(ledger)
    assert (closing.lines, closing.proof.event_tokens, closing.proof.currency) == (0, 0, None)


def test_late_events_are_corrections_on_the_next_bill(ledger: Engine, tmp_path: Path) -> None:
    bring(ledger, tmp_path, an_event(prompt_tokens=6, completion_tokens=0))  # 0.0048: nothing yet
    close(ledger)
    closed = lines(ledger)
    late = an_event(prompt_tokens=6, completion_tokens=0)
    bring(
        ledger,
        tmp_path,
        late,
        an_event(time=NOON + timedelta(days=1), prompt_tokens=1000, completion_tokens=0),
    )
    closing = close(ledger, NEXT, now=AFTER_NEXT)
    assert lines(ledger) == closed
    # 12 tokens cost 0.0096: the correction brings what the first rounding left out.
    assert lines(ledger, NEXT) == [(DAY, "user-a", "input", 6, 1), (NEXT, "user-a", "input", 1000, 80)]
    assert closing.proof.corrected_days == (DAY,)


def test_a_closed_day_is_proven_again_while_late_events_wait_for_the_next_bill(
    ledger: Engine, tmp_path: Path
) -> None:
    bring(ledger, tmp_path, an_event())
    first = close(ledger)
    bring(ledger, tmp_path, an_event())
    assert close(ledger).proof == first.proof
    assert close(ledger, NEXT, now=AFTER_NEXT).proof.line_tokens == 120
    assert close(ledger).proof == first.proof


def test_every_event_says_which_bill_it_is_on(ledger: Engine, tmp_path: Path) -> None:
    early, late, waiting = an_event(), an_event(), an_event()
    bring(ledger, tmp_path, early)
    close(ledger)
    bring(ledger, tmp_path, late)
    close(ledger, NEXT, now=AFTER_NEXT)
    bring(ledger, tmp_path, waiting)
    with reading(ledger) as connection:
        query = sa.select(usage_events.c.id, event_batches.c.bill_day).join(
            event_batches, event_batches.c.id == usage_events.c.batch_id
        )
        on_bill = {row.id: row.bill_day for row in connection.execute(query)}
    assert on_bill == {early.id: DAY, late.id: NEXT, waiting.id: None}


def test_a_day_closed_out_of_turn_bills_its_own_usage_only(ledger: Engine, tmp_path: Path) -> None:
    tomorrow = an_event(time=NOON + timedelta(days=1), completion_tokens=0)
    bring(ledger, tmp_path, an_event(completion_tokens=0), tomorrow)
    close(ledger, NEXT, now=AFTER_NEXT)
    close(ledger, DAY, now=AFTER_NEXT)
    assert lines(ledger, NEXT) == [(NEXT, "user-a", "input", 100, 8)]
    assert lines(ledger, DAY) == [(DAY, "user-a", "input", 100, 8)]


def test_tokens_without_a_price_are_billed_unrated_and_corrected_once_priced(
    ledger: Engine, tmp_path: Path
) -> None:
    bring(ledger, tmp_path, an_event(completion_tokens=0))
    assert close(ledger, prices=[]).proof.unrated_tokens == 100
    assert lines(ledger) == [(DAY, "user-a", "input", 100, None)]
    close(ledger, NEXT, now=AFTER_NEXT)
    assert lines(ledger, NEXT) == [(DAY, "user-a", "input", -100, None), (DAY, "user-a", "input", 100, 8)]
    close(ledger, NEXT + timedelta(days=1), now=AFTER_NEXT + timedelta(days=1))
    assert lines(ledger, NEXT + timedelta(days=1)) == []


@pytest.mark.parametrize(
    "changed",
    [
        [],
        [a_price(input=Decimal("0.90"))],
        [a_price(), a_price(effective_from=DAY, input=Decimal("0.90"))],
        [a_price(), a_price(model_version="1", effective_from=date(2026, 2, 1))],
    ],
)
def test_a_price_never_changes_the_past(ledger: Engine, tmp_path: Path, changed: list[Price]) -> None:
    bring(ledger, tmp_path, an_event())
    close(ledger)
    with pytest.raises(PricesError) as refused:
        close(ledger, NEXT, prices=changed, now=AFTER_NEXT)
    assert refused.value.code == "price_changes_past"


def test_late_events_are_rated_at_the_price_of_their_day(ledger: Engine, tmp_path: Path) -> None:
    prices = [a_price(), a_price(effective_from=NEXT, input=Decimal(8))]
    bring(ledger, tmp_path, an_event(prompt_tokens=1000, completion_tokens=0))
    close(ledger, prices=prices)
    bring(ledger, tmp_path, an_event(prompt_tokens=1000, completion_tokens=0))
    close(ledger, NEXT, prices=prices, now=AFTER_NEXT)
    assert lines(ledger, NEXT) == [(DAY, "user-a", "input", 1000, 80)]


def test_bills_of_one_ledger_are_in_one_currency(ledger: Engine, tmp_path: Path) -> None:
    bring(ledger, tmp_path, an_event())
    close(ledger)
    with pytest.raises(PricesError) as refused:
        close(ledger, NEXT, prices=[a_price(), a_price(model="m2", currency="USD")], now=AFTER_NEXT)
    assert refused.value.code == "currency_changed"


TAMPERED = [
    (usage_events.update().values(prompt_tokens=101), "hourly aggregates"),
    (usage_hours.update().values(requests=7), "7 requests"),
    (usage_hours.delete(), "hourly aggregates"),
    (bill_lines.update().values(quantity_tokens=99), "\\+1 input tokens"),
    (bill_lines.update().values(amount_minor=99), "the lines say 99"),
    (bill_lines.update().values(unit_price="0.01"), "other terms"),
    (bill_lines.update().values(price_id="forged"), "price version forged"),
    (bill_lines.update().values(user_id="user-x"), "user user-a"),
    (bill_lines.delete(), "\\+100 input tokens"),
]


@pytest.mark.parametrize(("tampering", "where"), TAMPERED)
def test_a_day_whose_numbers_disagree_is_not_proven(
    ledger: Engine, tmp_path: Path, tampering: sa.Executable, where: str
) -> None:
    bring(ledger, tmp_path, an_event(completion_tokens=0))
    close(ledger)
    with writing(ledger) as connection:
        connection.execute(tampering)
    with pytest.raises(ClosureError, match=where) as refused:
        close(ledger)
    assert refused.value.code == "closure_mismatch"


@pytest.mark.parametrize(
    "tampering",
    [
        usage_hours.update().values(prompt_tokens=101),
        usage_hours.update().values(requests=7),  # on which no line depends
        usage_events.update().values(prompt_tokens=101),
        usage_events.update().values(user_id="user-x"),
    ],
)
def test_a_mismatch_leaves_the_day_open(ledger: Engine, tmp_path: Path, tampering: sa.Executable) -> None:
    bring(ledger, tmp_path, an_event())
    with writing(ledger) as connection:
        connection.execute(tampering)
    with pytest.raises(ClosureError, match=r"user-a.*the hourly aggregates are"):
        close(ledger)
    with reading(ledger) as connection:
        assert connection.execute(sa.select(bill_days)).all() == []


def test_two_closers_at_once_make_one_bill(ledger_url: str, tmp_path: Path) -> None:
    engine = open_ledger(ledger_url, "Asia/Shanghai")
    bring(engine, tmp_path, *[an_event(user=f"u{n}") for n in range(50)])

    def run(_number: int) -> Closing:
        mine = open_ledger(ledger_url, "Asia/Shanghai")
        try:
            return close(mine)
        finally:
            mine.dispose()

    with ThreadPoolExecutor(4) as threads:
        outcomes = list(threads.map(run, range(4)))
    assert sorted(o.newly_closed for o in outcomes) == [False, False, False, True]
    assert len({o.proof for o in outcomes}) == 1
    engine.dispose()


def test_closing_a_bill_charges_the_projects_wallet_once(ledger: Engine, tmp_path: Path) -> None:
    with writing(ledger) as connection:
        wallets.top_up(connection, "search", 1000, "CNY", "user-a")
    bring(ledger, tmp_path, an_event())
    draft(ledger)
    close(ledger)
    close(ledger)
    with reading(ledger) as connection:
        assert wallets.balances(connection) == [wallets.Balance("search", "CNY", 1000 - 13)]
