from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

import billing.ingest
import billing.retention
from billing.aggregates import rebuild_day
from billing.alerts.tables import network_days
from billing.audit import trace, verify
from billing.bills import close_day
from billing.day_sums import sum_days
from billing.errors import AuditError, BillingError, LedgerError, PricesError
from billing.ingest import ingest, store_journal
from billing.ledger import open_ledger, reading, writing
from billing.partitions import prepare_days
from billing.prices.book import kept_tariff, sync_prices
from billing.prices.tariff import Tariff
from billing.retention import Dropped, drop_events
from billing.store import retry_set_aside
from billing.tables import bill_lines, event_ids, set_aside, usage_events, usage_hours
from tests.billing.conftest import TIME_ZONE
from tests.billing.days import bring
from tests.billing.factories import AFTER, DAY, NOON, ZONE, a_price, an_event, write_segment
from tests.billing.older import chain_without

TOMORROW = DAY + timedelta(days=1)
KEPT = an_event()
OPEN = an_event(time=NOON + timedelta(days=1))


def close(ledger: Engine, days: int) -> None:
    with writing(ledger) as connection:
        tariff = sync_prices(connection, Tariff((a_price(),)))
        now = AFTER + timedelta(days=days)
        close_day(connection, DAY + timedelta(days=days), tariff, ZONE, now=now)


@pytest.fixture
def closed(ledger: Engine, tmp_path: Path) -> Engine:
    """A closed day of two events, and an open one of one."""
    write_segment(tmp_path, [KEPT, an_event(), OPEN])
    ingest(ledger, tmp_path, ZONE)
    close(ledger, 0)
    return ledger


def test_an_audit_and_dropping_events_do_not_meet(
    closed: Engine, ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An audit reads one state of the ledger; a table that PostgreSQL drops is gone in all of them."""
    monkeypatch.setattr(billing.retention, "_LOCK_SECONDS", 1)
    another = open_ledger(ledger_url, TIME_ZONE)
    found: list[str] = []

    def drop(*_: object) -> None:
        try:
            found.extend(str(dropped.day) for dropped in drop_events(another, TOMORROW))
        except LedgerError as error:
            found.append(error.code)

    monkeypatch.setattr("billing.audit.prove_kept", drop)  # before the first event is read
    with reading(closed) as connection:
        verify(connection)
    assert found == ["ledger_busy" if closed.dialect.name == "postgresql" else str(DAY)]
    another.dispose()


def test_a_day_whose_unrated_tokens_have_got_their_price_is_kept_until_they_are_billed(
    ledger: Engine,
) -> None:
    bring(ledger, [an_event(model="tiny")])
    close(ledger, 0)
    priced = Tariff((a_price(), a_price(model="tiny", minimum=Decimal("0.50"))))
    with writing(ledger) as connection:
        sync_prices(connection, priced)
    assert list(drop_events(ledger, TOMORROW)) == []
    with writing(ledger) as connection:
        now = AFTER + timedelta(days=1)
        closing = close_day(connection, TOMORROW, kept_tariff(connection), ZONE, now=now)
    assert closing.proof.amount_minor == 50
    assert list(drop_events(ledger, TOMORROW)) == [Dropped(DAY, 1)]


def test_a_minimum_does_not_come_for_requests_that_nobody_can_tell_apart_any_more(ledger: Engine) -> None:
    bring(ledger, [an_event(model="tiny")])
    close(ledger, 0)
    assert list(drop_events(ledger, TOMORROW)) == [Dropped(DAY, 1)]
    priced = a_price(model="tiny", minimum=Decimal("0.50"))
    with writing(ledger) as connection:
        with pytest.raises(PricesError, match="2026-11-21") as refused:
            sync_prices(connection, Tariff((a_price(), priced)))
        assert refused.value.code == "events_dropped"
        from_then_on = (replace(priced, minimum=None), replace(priced, effective_from=TOMORROW))
        sync_prices(connection, Tariff((a_price(), *from_then_on)))


def test_dropping_does_not_read_the_audit_chain_for_a_day_of_which_nothing_was_dropped(
    closed: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("billing.chain.records", None)
    assert list(drop_events(closed, TOMORROW)) == [Dropped(DAY, 2)]


def test_events_that_an_older_version_dropped_are_proven_as_far_as_it_told(closed: Engine) -> None:
    list(drop_events(closed, TOMORROW))
    with writing(closed) as connection:
        chain_without(connection, ["ids_sha256", "networks_sha256", "hours_sha256"])
        assert verify(connection).days == 1
        connection.execute(event_ids.update().where(event_ids.c.id == KEPT.id).values(id="other"))
        with pytest.raises(AuditError, match="batch 1 has other ids"):
            verify(connection)


def events(ledger: Engine) -> list[str]:
    with reading(ledger) as connection:
        return list(connection.scalars(sa.select(usage_events.c.id)))


def test_only_events_of_closed_bills_are_dropped_and_the_audit_goes_on(closed: Engine) -> None:
    assert list(drop_events(closed, DAY + timedelta(days=9))) == [Dropped(DAY, 2)]
    assert events(closed) == [OPEN.id]
    with reading(closed) as connection:
        assert verify(connection).days == 1
        assert connection.scalar(sa.select(sa.func.sum(usage_hours.c.requests))) == 3
    assert list(drop_events(closed, DAY + timedelta(days=9))) == []


def test_days_from_the_given_one_on_are_kept(closed: Engine) -> None:
    assert list(drop_events(closed, DAY)) == []
    assert len(events(closed)) == 3


def test_a_dropped_event_is_never_billed_again(closed: Engine, tmp_path: Path) -> None:
    list(drop_events(closed, TOMORROW))
    write_segment(tmp_path, [KEPT], name="again.jsonl")
    result = ingest(closed, tmp_path, ZONE)
    assert (result.stored, result.duplicates) == (0, 1)


@pytest.mark.parametrize(
    "altering",
    [
        event_ids.delete().where(event_ids.c.id == KEPT.id),  # it would be billed again
        event_ids.update().where(event_ids.c.id == KEPT.id).values(id="other"),
        event_ids.update().where(event_ids.c.id == KEPT.id).values(content_sha256=b"0" * 32),
    ],
)
def test_an_altered_id_of_a_dropped_event_is_found(closed: Engine, altering: sa.Executable) -> None:
    list(drop_events(closed, TOMORROW))
    with writing(closed) as connection:
        verify(connection)
        connection.execute(altering)
    with reading(closed) as connection, pytest.raises(AuditError, match="batch 1 "):
        verify(connection)


def test_an_id_that_was_claimed_for_no_event_is_found(closed: Engine) -> None:
    with writing(closed) as connection:
        connection.execute(event_ids.insert().values(id="claimed", batch_id=1, content_sha256=b"0"))
    with reading(closed) as connection, pytest.raises(AuditError, match="batch 1 has ids of 3 events"):
        verify(connection)


def test_an_event_that_comes_late_while_its_day_is_dropped_is_stored(
    closed: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadPoolExecutor() as pool:

        def prepare_then_drop(ledger: Engine, days: set[date]) -> None:
            prepare_days(ledger, days)
            wait([pool.submit(lambda: list(drop_events(ledger, TOMORROW)))], timeout=1)

        if closed.dialect.name == "postgresql":  # on SQLite there is one writer at a time
            monkeypatch.setattr(billing.ingest, "prepare_days", prepare_then_drop)
        late = an_event()
        write_segment(tmp_path, [late], name="late.jsonl")
        assert ingest(closed, tmp_path, ZONE).stored == 1
    assert late.id in events(closed)


def test_an_event_that_comes_late_for_a_dropped_day_is_billed_and_can_be_dropped_too(
    closed: Engine, tmp_path: Path
) -> None:
    list(drop_events(closed, TOMORROW))
    write_segment(tmp_path, [an_event()], name="late.jsonl")
    assert ingest(closed, tmp_path, ZONE).stored == 1
    assert list(drop_events(closed, TOMORROW)) == []  # it is on no bill yet
    close(closed, 1)
    with reading(closed) as connection:
        late = (bill_lines.c.day == TOMORROW, bill_lines.c.usage_day == DAY)
        assert connection.scalar(sa.select(sa.func.sum(bill_lines.c.quantity_tokens)).where(*late)) == 120
        verify(connection)
    assert list(drop_events(closed, TOMORROW)) == [Dropped(DAY, 1)]
    with reading(closed) as connection:
        verify(connection)


@pytest.mark.parametrize(
    ("altered", "named"),
    [
        (usage_hours.update().where(usage_hours.c.day == DAY).values(status=500), "2026-11-21: its hours"),
        (usage_hours.update().where(usage_hours.c.day == DAY).values(hour=AFTER), "2026-11-21: its hours"),
        (usage_hours.delete().where(usage_hours.c.day == DAY), "2026-11-21"),
        (event_ids.update().where(event_ids.c.id == KEPT.id).values(id="0"), "events dropped for 2026-11-21"),
        (network_days.update().values(requests=9), "2026-11-21: its networks"),
        (network_days.delete(), "2026-11-21: its networks"),
        (event_ids.delete().where(event_ids.c.id == KEPT.id), "batch 1 has ids of 1 events"),
    ],
)
def test_what_stays_of_dropped_events_can_not_be_altered(
    closed: Engine, tmp_path: Path, altered: sa.Executable, named: str
) -> None:
    with writing(closed) as connection:
        sum_days(connection, DAY, DAY)
    list(drop_events(closed, TOMORROW))
    write_segment(tmp_path, [an_event()], name="late.jsonl")
    ingest(closed, tmp_path, ZONE)
    with writing(closed) as connection:
        verify(connection)
        connection.execute(altered)
    with reading(closed) as connection, pytest.raises(BillingError, match=named):
        verify(connection)


def test_a_day_that_was_altered_is_not_dropped(closed: Engine) -> None:
    with writing(closed) as connection:
        connection.execute(usage_events.update().where(usage_events.c.id == KEPT.id).values(status=500))
    with pytest.raises(BillingError, match=KEPT.id):
        list(drop_events(closed, TOMORROW))
    assert len(events(closed)) == 3


def test_what_needs_the_rows_says_that_they_were_dropped(closed: Engine) -> None:
    list(drop_events(closed, TOMORROW))
    with writing(closed) as connection, pytest.raises(BillingError) as refused:
        trace(connection, KEPT.id)
    assert refused.value.code == "event_dropped"
    with writing(closed) as connection, pytest.raises(BillingError) as refused:
        rebuild_day(connection, DAY)
    assert refused.value.code == "events_dropped"


def test_a_line_that_was_set_aside_is_stored_once_it_can_be(ledger: Engine, tmp_path: Path) -> None:
    write_segment(tmp_path, [an_event(time=NOON + timedelta(days=400)), b"{"])
    assert ingest(ledger, tmp_path, ZONE).set_aside == {"future_time": 1, "not_json": 1}
    again = retry_set_aside(ledger, ZONE, now=AFTER + timedelta(days=401))
    assert (again.stored, again.set_aside) == (1, {})
    assert retry_set_aside(ledger, ZONE).read == 0
    with reading(ledger) as connection:
        assert list(connection.scalars(sa.select(set_aside.c.code))) == ["not_json"]


def test_what_came_late_and_is_not_rolled_up_yet_disturbs_no_proof(closed: Engine, tmp_path: Path) -> None:
    write_segment(tmp_path / "late", [an_event()])
    store_journal(closed, tmp_path / "late", ZONE)
    with reading(closed) as connection:
        verify(connection)
    list(drop_events(closed, TOMORROW))  # which keeps the day, since an event of it waits
    close(closed, 1)
    with reading(closed) as connection:
        verify(connection)


def test_who_reads_the_events_keeps_them_and_is_told_of(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(billing.retention, "_LOCK_SECONDS", 0.1)
    ledger = open_ledger(postgres_url, TIME_ZONE)
    write_segment(tmp_path, [KEPT])
    ingest(ledger, tmp_path, ZONE)
    close(ledger, 0)
    with reading(ledger) as reader:
        reader.execute(sa.select(usage_events)).all()
        with pytest.raises(LedgerError) as refused:
            list(drop_events(ledger, TOMORROW))
    assert refused.value.code == "ledger_busy"
    assert events(ledger) == [KEPT.id]
    ledger.dispose()


def test_a_database_that_goes_away_is_not_called_busy(
    closed: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = sa.exc.OperationalError("", {}, OSError("server closed the connection unexpectedly"))
    monkeypatch.setattr(billing.retention, "prove_hours", lambda *_: (_ for _ in ()).throw(gone))
    with pytest.raises(sa.exc.OperationalError, match="closed the connection"):
        list(drop_events(closed, TOMORROW))
