"""Sums by day: what the hours hold, brought up to date only where events came."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from billing.alerts.tables import network_days, usage_days
from billing.day_sums import KINDS, history, network_of, sum_days
from billing.ledger import reading, writing
from billing.tables import usage_hours
from tests.billing.days import at, bring
from tests.billing.factories import DAY, an_event

BEFORE = DAY - timedelta(days=1)


def test_the_sums_of_every_kind_are_those_of_the_hours(ledger: Engine) -> None:
    bring(ledger, [an_event(user=f"u{n % 3}", model=f"m{n % 2}", time=at(DAY, n)) for n in range(12)])
    bring(ledger, [an_event(user="u0", project="other", time=at(BEFORE))])
    with writing(ledger) as connection:
        assert sum_days(connection, BEFORE, DAY) == [BEFORE, DAY]
        tokens = sa.func.sum(usage_hours.c.prompt_tokens + usage_hours.c.completion_tokens)
        for kind, column in KINDS.items():
            told = history(connection, kind, BEFORE, DAY)
            rows = connection.execute(sa.select(column, tokens).group_by(column)).all()
            assert {n: int(sum(told.tokens[i])) for i, n in enumerate(told.names)} == dict(map(tuple, rows))
        users = history(connection, "user", BEFORE, DAY)
    assert users.names == ["u0", "u1", "u2"]
    assert users.tokens.tolist() == [[120, 480], [0, 480], [0, 480]]


def test_only_days_with_new_events_are_summed_again(ledger: Engine) -> None:
    bring(ledger, [an_event(), an_event(time=at(BEFORE))])
    with writing(ledger) as connection:
        sum_days(connection, BEFORE, DAY)
        assert sum_days(connection, BEFORE, DAY) == []
    bring(ledger, [an_event(user="late", time=at(BEFORE))])
    with writing(ledger) as connection:
        assert sum_days(connection, BEFORE, DAY) == [BEFORE]
        told = history(connection, "user", BEFORE, DAY)
    assert told.tokens.tolist() == [[120, 0], [120, 120]]
    assert told.names == ["late", "user-a"]


def test_addresses_are_counted_by_network(sqlite_ledger: Engine) -> None:
    for address in ("10.1.2.3", "10.1.2.99", "10.1.3.1", "2001:db8:1:2::3", "2001:db8:1:ff::9"):
        bring(sqlite_ledger, [an_event(client_ip=address)])
    with writing(sqlite_ledger) as connection:
        sum_days(connection, DAY, DAY)
    with reading(sqlite_ledger) as connection:
        rows = connection.execute(sa.select(network_days.c.network, network_days.c.requests)).all()
    assert dict(map(tuple, rows)) == {"10.1.2.0/24": 2, "10.1.3.0/24": 1, "2001:db8:1::/48": 2}


@pytest.mark.parametrize("address", ["unknown", "10.1.2", "unix:", "::ffff:1.2.3.4.5"])
def test_what_is_no_address_is_counted_as_it_is(address: str) -> None:
    assert network_of(address) == address


def test_a_ledger_without_events_has_no_sums(sqlite_ledger: Engine) -> None:
    with writing(sqlite_ledger) as connection:
        assert sum_days(connection, BEFORE, DAY) == []
        assert connection.scalar(sa.select(sa.func.count()).select_from(usage_days)) == 0
        assert history(connection, "model", BEFORE, DAY).tokens.shape == (0, 2)
