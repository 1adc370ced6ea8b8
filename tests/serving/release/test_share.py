"""A share of the users: who is in it, and how it is written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.release.share import WHOLE, InvalidShareError, falls_to_canary, parse_percent, percent

SHARES = st.integers(0, WHOLE)
NAMES = st.text(min_size=1, max_size=20)


@pytest.mark.parametrize(
    ("text", "share"), [("0", 0), ("5", 500), ("5%", 500), ("0.25", 25), ("12.5", 1250), ("100", WHOLE)]
)
def test_a_percentage_is_read_in_hundredths(text: str, share: int) -> None:
    assert parse_percent(text) == share


@pytest.mark.parametrize("text", ["1e999999", "", "much", "-1", "100.01", "0.001", "nan", "inf", "1e3"])
def test_what_is_no_percentage_is_refused(text: str) -> None:
    with pytest.raises(InvalidShareError, match="is not a percentage from 0 to 100"):
        parse_percent(text)


@given(SHARES)
def test_a_share_is_written_as_it_is_read(share: int) -> None:
    assert parse_percent(percent(share)) == share


@given(NAMES, NAMES, SHARES, SHARES)
def test_who_is_in_a_share_is_in_every_larger_one(model: str, user: str, one: int, other: int) -> None:
    small, large = sorted((one, other))
    assert falls_to_canary(model, user, small) <= falls_to_canary(model, user, large)


@given(NAMES, NAMES)
def test_nobody_is_in_nothing_and_everybody_in_the_whole(model: str, user: str) -> None:
    assert not falls_to_canary(model, user, 0)
    assert falls_to_canary(model, user, WHOLE)


def test_a_share_holds_about_so_many_users_and_others_for_another_model() -> None:
    users = [f"user-{number}" for number in range(20_000)]
    inside = {user for user in users if falls_to_canary("reviews", user, 500)}
    elsewhere = {user for user in users if falls_to_canary("titles", user, 500)}
    assert 850 < len(inside) < 1_150  # five standard deviations around 1,000
    assert 10 < len(inside & elsewhere) < 100  # about 5% of 5%
