from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.engine import Connection, Engine

from billing import chain
from billing.alerts.tables import network_days, summed_days, usage_days
from billing.audit import trace, verify
from billing.bills import close_day
from billing.day_sums import sum_days
from billing.errors import BillingError
from billing.events import content_sha256
from billing.ingest import ingest
from billing.ledger import open_ledger, reading, writing
from billing.merkle import merkle_root, root_from_path
from billing.offsets import move_offset
from billing.prices.book import sync_prices
from billing.prices.departments import DepartmentRule
from billing.prices.discounts import Discount
from billing.prices.tariff import Tariff
from billing.seals import batch_leaf
from billing.tables import (
    audit_records,
    bill_days,
    bill_lines,
    bill_totals,
    department_rules,
    discounts,
    event_batches,
    event_ids,
    journal_offsets,
    journal_reads,
    ledger_facts,
    prices,
    set_aside,
    usage_events,
    usage_hours,
)
from tallybook.usage import UsageEvent
from tests.billing.conftest import TIME_ZONE, copy_of, forgetful
from tests.billing.factories import AFTER, DAY, TRACED, ZONE, a_price, an_event, write_segment
from tests.billing.older import chain_without

EVENTS = [replace(an_event(user=f"user-{n % 3}"), id=f"000-{n:03d}") for n in range(20)]
EVENTS[0] = replace(EVENTS[0], **TRACED)
LATE = an_event()
TARIFF = Tariff(
    (a_price(),),
    (Discount("sales", None, Decimal(10), DAY),),
    (DepartmentRule("user-9", None, "sales", DAY),),
)
OPEN = an_event()


def close(ledger: Engine, day: date) -> None:
    with writing(ledger) as connection:
        listed = sync_prices(connection, TARIFF)
        close_day(connection, day, listed, ZONE, now=AFTER + (day - DAY))


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def closed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Two closed days, the second of them with a correction, and an event that waits for the third.

    One ledger for all tests: what they alter they take back.
    """
    folder = tmp_path_factory.mktemp("closed")
    with copy_of(request.getfixturevalue(f"{request.param}_template"), folder) as url:
        ledger = forgetful(open_ledger(url, TIME_ZONE))
        journal: list[tuple[date | None, list[UsageEvent | bytes]]] = [
            (DAY, [*EVENTS]), (DAY + timedelta(days=1), [LATE]), (None, [OPEN, b"no json"]),
        ]  # fmt: skip
        for day, events in journal:
            write_segment(folder / "journal", events)
            ingest(ledger, folder / "journal", ZONE)
            if day:
                close(ledger, day)
        with writing(ledger) as connection:
            sum_days(connection, DAY, DAY + timedelta(days=1))
        yield ledger
        ledger.dispose()


@contextmanager
def altering(ledger: Engine) -> Iterator[Connection]:
    """A transaction that changes the ledger, and is taken back."""
    with writing(ledger) as connection:
        yield connection
        connection.rollback()


def test_an_untouched_ledger_is_verified(closed: Engine) -> None:
    with reading(closed) as connection:
        found = verify(connection)
        assert (found.records, found.days, found.events) == (4, 2, 22)
        assert found.head == chain.head(connection)


def alter(table: sa.Table, *, last: bool = False, **values: object) -> Callable[[Connection], None]:
    """Alter the first or last row of a table, or remove it."""

    def do(connection: Connection) -> None:
        keys = list(table.primary_key.columns) or [table.c.id]
        order = [key.desc() if last else key for key in keys]
        chosen = connection.execute(sa.select(*keys).order_by(*order).limit(1)).one()
        is_chosen = [column == value for column, value in zip(keys, chosen, strict=True)]
        statement = table.update().values(values) if values else table.delete()
        connection.execute(statement.where(*is_chosen))

    return do


def forge_consistently(connection: Connection) -> None:
    """Alter an event, and its digest to match."""
    event = usage_events.c.id == "000-000"
    connection.execute(usage_events.update().where(event).values(client_ip="10.0.0.1"))
    row = connection.execute(sa.select(usage_events).where(event)).one()
    digest = content_sha256(row._mapping)
    connection.execute(event_ids.update().where(event_ids.c.id == "000-000").values(content_sha256=digest))


def forge_with_its_batch(connection: Connection) -> None:
    """Alter an event, its digest and the root of its batch to match."""
    forge_consistently(connection)
    leaves = connection.scalars(
        sa.select(event_ids.c.content_sha256).where(event_ids.c.batch_id == 1).order_by(event_ids.c.id)
    )
    root = merkle_root(leaves)
    connection.execute(event_batches.update().where(event_batches.c.id == 1).values(events_root=root))


def put_in(connection: Connection) -> None:
    """Copy an event under another id."""
    row = connection.execute(sa.select(usage_events).where(usage_events.c.id == "000-000")).mappings().one()
    connection.execute(usage_events.insert().values(dict(row) | {"id": "forged", "prompt_tokens": 0}))


def put_in_a_day_of_its_own(connection: Connection) -> None:
    """Copy an event to a day that has no batch."""
    day = DAY + timedelta(days=9)
    if connection.dialect.name == "postgresql":
        bounds = f"FROM ('{day}') TO ('{day + timedelta(days=1)}')"
        connection.exec_driver_sql(f"CREATE TABLE forged PARTITION OF usage_events FOR VALUES {bounds}")
    row = connection.execute(sa.select(usage_events).where(usage_events.c.id == "000-000")).mappings().one()
    connection.execute(usage_events.insert().values(dict(row) | {"id": "forged", "day": day}))


def put_in_hours_of_a_day_of_their_own(connection: Connection) -> None:
    """Copy an hour to a day that has no batch."""
    row = connection.execute(sa.select(usage_hours).limit(1)).mappings().one()
    connection.execute(usage_hours.insert().values(dict(row) | {"day": DAY + timedelta(days=9)}))


def put_in_an_offset(connection: Connection) -> None:
    """Say that a segment was read."""
    connection.execute(journal_offsets.insert().values(segment="other.jsonl", offset_bytes=7))


def read_past_an_offset_that_was_moved(connection: Connection) -> None:
    """Move an offset forward, and read on from there as an ingester would."""
    connection.execute(journal_offsets.update().values(offset_bytes=10**6))
    assert move_offset(connection, "1.jsonl", 10**6, 10**6 + 9)


def put_in_a_fact(connection: Connection) -> None:
    """Say something else of the ledger."""
    connection.execute(ledger_facts.insert().values(name="owner", value="bob"))


def put_a_line_aside(connection: Connection) -> None:
    """Copy a line that was set aside to another place."""
    row = connection.execute(sa.select(set_aside)).mappings().one()
    connection.execute(set_aside.insert().values(dict(row) | {"offset_bytes": 7}))


ALTERED: list[tuple[Callable[[Connection], None], str]] = [
    (alter(usage_events, prompt_tokens=1), "event 000-000"),
    (alter(usage_events, client_ip="10.0.0.1"), "event 000-000"),
    (alter(usage_events, prompt_prefix=b"\xff"), "event 000-000"),
    (alter(usage_events, time=AFTER), "event 000-000"),
    (alter(usage_events, reasoning_tokens=4), "event 000-000"),
    (alter(usage_events, delivered_tokens=None), "event 000-000"),
    (alter(usage_events, api_key_id="key-2"), "event 000-000"),
    (alter(usage_events, trace_id=None), "event 000-000"),
    (alter(usage_events, prompt_encrypted=None), "event 000-000"),
    (alter(usage_events, batch_id=77), "event 000-000"),
    (alter(usage_events, context_band=32_769), "user user-0"),
    (alter(usage_events), "event 000-000 is missing"),
    (put_in, "event forged"),
    (put_in_a_day_of_its_own, "event forged of 2026-11-30"),
    (put_in_hours_of_a_day_of_their_own, "2026-11-30, user user-"),
    (forge_consistently, "batch 1 of 2026-11-21"),
    (forge_with_its_batch, "2026-11-21: events_root"),
    (alter(event_ids, content_sha256=b"0"), "event 000-000"),
    (alter(event_ids), "event 000-000"),
    (alter(event_batches, requests=19), "batch 1"),
    (alter(event_batches, bill_day=DAY + timedelta(days=1)), "2026-11-2[12]"),
    (alter(event_batches, segment="other.jsonl"), "batch 1 .* other.jsonl at byte 0, where nothing was read"),
    (alter(event_batches, dropped_at=AFTER), "dropped for 2026-11-21"),
    (alter(event_batches), "event 000-000"),
    (alter(event_batches, last=True, prompt_tokens=7), "batch 3 of 2026-11-21 .* says 7 prompt tokens"),
    (alter(event_batches, last=True, cached_tokens=7), "batch 3 .* 7 cached tokens"),
    (alter(event_batches, last=True, completion_tokens=7), "batch 3 .* 7 completion tokens"),
    (alter(event_batches, last=True, day=DAY - timedelta(days=1)), "batch 3"),
    (alter(event_batches, last=True, bill_day=DAY + timedelta(days=2)), "batch 3 .* bill of 2026-11-23"),
    (alter(event_batches, last=True, segment="other.jsonl"), "batch 3 .* other.jsonl at byte .* nothing was"),
    (alter(event_batches, last=True, offset_bytes=7), "batch 3 .* 1.jsonl at byte 7, where nothing was read"),
    (alter(journal_offsets, offset_bytes=10**9), "1.jsonl was read up to byte .* offset is 1000000000"),
    (alter(journal_offsets, segment="other.jsonl"), "1.jsonl was read up to byte .* offset is missing"),
    (alter(journal_offsets), "1.jsonl was read up to byte .* offset is missing"),
    (put_in_an_offset, "other.jsonl was read up to byte 0, but its offset is 7"),
    (alter(journal_reads, segment="other.jsonl"), "1.jsonl was read up to byte 0"),
    (alter(journal_reads, next_offset_bytes=7), "1.jsonl was read up to byte 7"),
    (alter(journal_reads, last=True, next_offset_bytes=10**9), "1.jsonl was read up to byte 1000000000"),
    (alter(journal_reads), "1.jsonl was read up to byte 0"),
    (read_past_an_offset_that_was_moved, "1.jsonl was read up to byte"),
    (alter(usage_hours, prompt_tokens=1), "user user-"),
    (alter(usage_hours, status=500), "2026-11-21, user user-0, .*: its hour "),
    (alter(usage_hours, hour=AFTER), "2026-11-21, user user-0, .*: its hour "),
    (alter(usage_events, hour=AFTER), "2026-11-21, user user-0, .*: its hour "),
    (alter(bill_lines, amount_minor=1), "user user-"),
    (alter(bill_lines, direction="sideways"), "user user-0, .*: there are no sideways lines"),
    (alter(bill_lines), "user user-"),
    (alter(bill_totals, amount_minor=1), "2026-11, user user-0"),
    (alter(bill_totals), "2026-11, user user-0"),
    (alter(bill_days, state="draft"), "2026-11-21 was sealed"),
    (alter(bill_days, early=True), "2026-11-21: early"),
    (alter(bill_days, closed_at=AFTER + timedelta(days=9)), "2026-11-21: closed_at"),
    (alter(bill_days, closed_at=None), "2026-11-21: closed_at"),
    (alter(bill_days, closed_with=DAY + timedelta(days=1)), "2026-11-21: closed_with"),
    (alter(prices, effective_from=DAY), "of prices is not what"),
    (alter(prices, imported_at=AFTER), "of prices is not what"),
    (alter(prices, withdrawn_at=AFTER), "of prices is not what"),
    (alter(prices), "of prices is not what"),
    (alter(discounts, imported_at=AFTER), "of discounts is not what"),
    (alter(discounts, percent="11"), "of discounts is not what"),
    (alter(discounts), "of discounts is not what"),
    (alter(department_rules, imported_at=AFTER), "of department_rules is not what"),
    (alter(department_rules, department="ops"), "of department_rules is not what"),
    (alter(department_rules), "of department_rules is not what"),
    (alter(ledger_facts, value="UTC"), "time_zone is UTC; it was Asia/Shanghai when 2026-11-21 was closed"),
    (alter(ledger_facts, name="zone"), "the ledger's time_zone is missing"),
    (alter(ledger_facts), "the ledger's time_zone is missing"),
    (put_in_a_fact, "the ledger's owner is bob; it was not there when 2026-11-21 was closed"),
    (alter(prices, input="0.8 CNY"), "of prices is not what"),
    (alter(prices, output="[[1"), "of prices is not what"),
    (alter(prices, cached_input="[[1, 2, 3]]"), "of prices is not what"),
    (alter(prices, minimum="sNaN"), "of prices is not what"),
    (alter(set_aside, segment="2.jsonl"), "the line of 2.jsonl at byte 1"),
    (alter(set_aside, offset_bytes=7), "the line of 1.jsonl at byte 7"),
    (alter(set_aside, code="torn_line"), "the line of 1.jsonl at byte 1"),
    (alter(set_aside, message="never mind"), "the line of 1.jsonl at byte 1"),
    (alter(set_aside, raw=b"{}"), "the line of 1.jsonl at byte 1"),
    (alter(set_aside, set_aside_at=AFTER), "the line of 1.jsonl at byte 1"),
    (alter(set_aside), "the line of 1.jsonl at byte .* is missing"),
    (put_a_line_aside, "the line of 1.jsonl at byte 7"),
    (alter(usage_days, requests=1), "2026-11-21, department retail: its sum of the day"),
    (alter(usage_days, tokens=1), "2026-11-21, department retail: its sum of the day"),
    (alter(usage_days, name="other"), "2026-11-21, department other: its sum of the day"),
    (alter(usage_days, kind="team"), "2026-11-21, department retail: its sum of the day"),
    (alter(usage_days, day=DAY + timedelta(days=9)), "usage_days has sums of 2026-11-30"),
    (alter(usage_days), "2026-11-21, department retail: its sum of the day"),
    (alter(network_days, requests=1), "2026-11-21, user user-0: its requests from 127.0.0.0/24"),
    (alter(network_days, network="10.0.0.0/24"), "2026-11-21, user user-0: its requests from 10.0.0.0/24"),
    (alter(network_days, user_id="bob"), "2026-11-21, user bob: its requests from 127.0.0.0/24"),
    (alter(network_days), "2026-11-21, user user-0: its requests from 127.0.0.0/24"),
    (alter(summed_days, batches=9), "2026-11-21 was summed up to batch 3"),
    (alter(summed_days, last_batch_id=9), "2026-11-21 was summed up to batch 9"),
    (alter(summed_days), "usage_days has sums of 2026-11-21, which was not summed"),
    (alter(audit_records, body="{}"), "audit record 1"),
    (alter(audit_records, kind="close"), "audit record 1"),
    (alter(audit_records), "audit record 1 is missing"),
]


@pytest.mark.parametrize(("tampering", "named"), ALTERED)
def test_an_altered_row_is_found_and_named(
    closed: Engine, tampering: Callable[[Connection], None], named: str
) -> None:
    with altering(closed) as connection:
        tampering(connection)
        with pytest.raises(BillingError, match=named):
            verify(connection)


@pytest.mark.parametrize(
    "nonsense",
    [
        "bill_days SET closed_at = 'noon'",
        "bill_days SET closed_with = 'today'",
        "bill_lines SET tier = 'x'",
        "bill_lines SET quantity_tokens = 'x'",
        "event_batches SET day = 'x'",
        "usage_events SET user_id = x'00'",
        "prices SET imported_at = 'x'",
        "summed_days SET batches = 'x'",
    ],
)
def test_a_value_of_another_type_which_sqlite_takes_is_told_by_code(
    sqlite_ledger: Engine, tmp_path: Path, nonsense: str
) -> None:
    write_segment(tmp_path / "journal", [an_event()])
    ingest(sqlite_ledger, tmp_path / "journal", ZONE)
    close(sqlite_ledger, DAY)
    with writing(sqlite_ledger) as connection:
        sum_days(connection, DAY, DAY)
        connection.exec_driver_sql(f"UPDATE {nonsense}")
    with reading(sqlite_ledger) as connection, pytest.raises(BillingError) as refused:
        verify(connection)
    assert refused.value.code in ("ledger_unreadable", "closure_mismatch")


def test_a_request_is_walked_to_its_bill_with_a_proof_that_anyone_can_check(closed: Engine) -> None:
    with reading(closed) as connection:
        found = trace(connection, "000-007")
        seals = {n: body for n, kind, body in chain.records(connection) if kind == "close"}
    assert [line["direction"] for line in found.lines] == ["input", "output"]
    assert {line["day"] for line in found.lines} == {DAY}
    assert found.sealed_by is not None
    assert found.event_index == 7
    leaf, root = content_sha256(found.event), found.batch["events_root"]
    assert root_from_path(leaf, 7, 20, [bytes.fromhex(step) for step in found.event_path]) == root
    assert found.batch_index == 0
    path = [bytes.fromhex(step) for step in found.batch_path]
    sealed = root_from_path(batch_leaf(found.batch), 0, seals[found.sealed_by]["batches"], path)
    assert sealed is not None
    assert sealed.hex() == seals[found.sealed_by]["events_root"]


def test_a_late_request_is_found_on_the_bill_that_corrects_its_day(closed: Engine) -> None:
    with reading(closed) as connection:
        found = trace(connection, LATE.id)
    assert {(line["day"], line["usage_day"]) for line in found.lines} == {(DAY + timedelta(days=1), DAY)}
    assert found.sealed_by == 3


def test_a_request_that_waits_for_its_bill_says_so(closed: Engine) -> None:
    with reading(closed) as connection:
        found = trace(connection, OPEN.id)
    assert (found.batch["bill_day"], found.lines, found.sealed_by) == (None, [], None)


@pytest.mark.parametrize("names", [("at", "facts"), ("at", "facts", "early", "closed_at", "closed_with")])
def test_a_ledger_whose_older_records_tell_less_is_proven_as_far_as_they_tell(
    closed: Engine, names: tuple[str, ...]
) -> None:
    with altering(closed) as connection:
        chain_without(connection, names, ["set_aside"])
        connection.execute(set_aside.update().values(set_aside_at=AFTER - timedelta(hours=9)))
        if "closed_at" in names:  # which is from before lines could be set aside
            connection.execute(set_aside.delete())
        assert verify(connection).days == 2
        connection.execute(prices.update().values(input="0.01"))
        with pytest.raises(BillingError, match="of prices is not what was imported"):
            verify(connection)


def test_a_line_that_was_set_aside_since_the_chain_tells_of_it_is_proven(closed: Engine) -> None:
    with altering(closed) as connection:
        chain_without(connection, ["facts"], ["set_aside"])
        connection.execute(set_aside.update().values(set_aside_at=AFTER + timedelta(days=9)))
        with pytest.raises(BillingError, match="is not what was set aside"):
            verify(connection)


def test_a_ledger_from_before_events_had_more_fields_is_proven_after_its_migration(
    ledger_url: str, tmp_path: Path
) -> None:
    ledger = open_ledger(ledger_url, TIME_ZONE)
    write_segment(tmp_path / "journal", [an_event() for _ in range(3)])
    ingest(ledger, tmp_path / "journal", ZONE)
    close(ledger, DAY)
    with writing(ledger) as connection:
        for name in TRACED:
            connection.exec_driver_sql(f"ALTER TABLE usage_events DROP COLUMN {name}")
        connection.exec_driver_sql("UPDATE ledger_version SET version_num = '0001'")
        config = Config()
        config.set_main_option("script_location", "billing:migrations")
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
    with reading(ledger) as connection:
        assert verify(connection).events == 3
    ledger.dispose()


def test_an_unknown_request_is_refused(closed: Engine) -> None:
    with reading(closed) as connection, pytest.raises(BillingError) as refused:
        trace(connection, "none")
    assert refused.value.code == "unknown_request"
