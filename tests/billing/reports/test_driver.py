from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.reports.driver import Change, Driver, main_driver
from billing.totals import Dimension, Part, Totals

Parts = dict[Dimension, list[Part]]


def totals(requests: int, tokens: int, amount: int | None = None, corrections: int = 0) -> Totals:
    return Totals(
        requests=requests,
        prompt_tokens=tokens,
        amount_minor=amount,
        corrections_minor=corrections,
        currency=None if amount is None else "CNY",
    )


def drive(
    before: dict[str, Totals], now: dict[str, Totals], *, corrections: tuple[int, int] = (0, 0)
) -> Driver | None:
    """The driver among users, of one project and one model."""

    def add(day: dict[str, Totals], corrected: int) -> Totals:
        rated = [t.amount_minor for t in day.values() if t.amount_minor is not None]
        return totals(
            sum(t.requests for t in day.values()),
            sum(t.prompt_tokens for t in day.values()),
            sum(rated) + corrected if rated else None,
            corrected,
        )

    def parts(day: dict[str, Totals]) -> Parts:
        return {
            "user": [Part((name,), each) for name, each in day.items()],
            "project": [Part(("only",), add(day, 0))],
        }

    return main_driver(add(before, corrections[0]), add(now, corrections[1]), parts(before), parts(now))


@pytest.mark.parametrize(
    ("before", "now", "percent"),
    [(200, 300, Decimal(50)), (300, 200, Decimal(-100) / 3), (0, 5, None), (-100, 50, Decimal(150))],
)
def test_a_change_has_a_percentage_of_what_was_unless_that_was_nothing(
    before: int, now: int, percent: Decimal | None
) -> None:
    assert Change(before, now).percent == percent
    assert Change(before, now).absolute == now - before


@pytest.mark.parametrize(
    ("before", "now", "cause"),
    [
        (totals(10, 1000), totals(30, 3000), "volume"),
        (totals(10, 1000), totals(10, 3000), "length"),
        (totals(10, 1000), totals(20, 3000), "volume_and_length"),
        (totals(10, 1000), totals(4, 400), "volume"),
        (totals(0, 0), totals(4, 400), "new"),
        (totals(4, 400), totals(0, 0), "gone"),
        (totals(10, 1000, 100), totals(10, 1000, 200), "price"),
        (totals(10, 1000, 100), totals(11, 1100, 200), "price"),
        (totals(10, 1000, 100), totals(20, 2000, 200), "volume"),
    ],
)
def test_what_moved_is_told_apart(before: Totals, now: Totals, cause: str) -> None:
    steady = totals(5, 500, None if now.amount_minor is None else 50)
    driver = drive({"user-a": before, "steady": steady}, {"user-a": now, "steady": steady})
    assert driver is not None
    assert (driver.name, driver.cause) == ("user-a", cause)


def test_the_part_that_explains_most_drives_also_downwards() -> None:
    driver = drive({"a": totals(10, 1000), "b": totals(10, 1000)}, {"a": totals(9, 900), "b": totals(4, 400)})
    assert driver is not None
    assert (driver.name, driver.change, driver.whole) == ("b", Change(1000, 400), Change(2000, 1300))


def test_a_part_explains_more_than_all_when_the_rest_moved_the_other_way() -> None:
    driver = drive(
        {"a": totals(10, 1000), "b": totals(10, 1000)}, {"a": totals(30, 3000), "b": totals(2, 200)}
    )
    assert driver is not None
    assert driver.name == "a"
    assert driver.percent_of_whole > 100


def test_a_wider_part_drives_when_no_narrow_one_explains_half() -> None:
    before: Parts = {
        "user": [Part((f"u{n}",), totals(1, 100)) for n in range(10)],
        "project": [Part(("big",), totals(9, 900)), Part(("small",), totals(1, 100))],
    }
    now: Parts = {
        "user": [Part((f"u{n}",), totals(2, 200)) for n in range(10)],
        "project": [Part(("big",), totals(18, 1800)), Part(("small",), totals(2, 200))],
    }
    driver = main_driver(totals(10, 1000), totals(20, 2000), before, now)
    assert driver is not None
    assert (driver.dimension, driver.name) == ("project", "big")
    assert driver.percent_of_whole == 90


def test_the_only_user_drives_when_there_is_nothing_else_to_name() -> None:
    driver = drive({"a": totals(1, 100)}, {"a": totals(2, 200)})
    assert driver is not None
    assert (driver.dimension, driver.name) == ("user", "a")


def test_corrections_drive_when_they_explain_the_bill() -> None:
    day = {"a": totals(1, 100, 10), "b": totals(1, 100, 10)}
    more = {"a": totals(1, 100, 10), "b": totals(1, 101, 11)}
    driver = drive(day, more, corrections=(0, 50))
    assert driver is not None
    assert (driver.dimension, driver.cause, driver.change) == (None, "corrections", Change(0, 50))


def test_nothing_drives_when_nothing_changed() -> None:
    day = {"a": totals(1, 100), "b": totals(1, 100)}
    assert drive(day, day) is None


def test_tokens_are_explained_when_a_day_has_no_amount() -> None:
    driver = drive({"a": totals(1, 100, 10)}, {"a": totals(2, 200)})
    assert driver is not None
    assert driver.measure == "tokens"


_day = st.dictionaries(
    st.sampled_from("abcdef"),
    st.builds(totals, st.integers(1, 50), st.integers(1, 10**9), st.integers(0, 10**6)),
    min_size=1,
)


@given(before=_day, now=_day)
def test_the_driver_moves_with_the_day_and_no_user_explains_more_than_it(
    before: dict[str, Totals], now: dict[str, Totals]
) -> None:
    driver = drive(before, now)
    if driver is None:
        return
    assert driver.change.absolute * driver.whole.absolute > 0
    assert driver.whole.absolute == driver.whole.now - driver.whole.before
    if driver.dimension == "user":
        moves = [
            now.get(u, Totals()).own_minor - before.get(u, Totals()).own_minor
            if driver.measure == "amount"
            else now.get(u, Totals()).total_tokens - before.get(u, Totals()).total_tokens
            for u in before.keys() | now.keys()
        ]
        sign = 1 if driver.whole.absolute > 0 else -1
        assert driver.change.absolute * sign == max(move * sign for move in moves)
