import fcntl
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import orjson
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import Engine

import billing.chunks
import billing.store
from billing.aggregates import rebuild_day
from billing.audit import verify
from billing.errors import AuditError, LedgerError
from billing.ingest import ingest
from billing.ledger import open_ledger, reading, writing
from billing.seals import verify_events
from billing.store import IngestResult
from billing.tables import event_batches, set_aside, usage_events, usage_hours
from tallybook.segments import REFUSED, committed
from tests.billing.conftest import TIME_ZONE, copy_of, forgetful
from tests.billing.days import bring
from tests.billing.factories import DAY, NOON, ZONE, an_event, write_segment


def stored_ids(ledger: Engine) -> list[str]:
    with reading(ledger) as connection:
        return sorted(connection.scalars(sa.select(usage_events.c.id)))


def set_aside_codes(ledger: Engine) -> list[str]:
    with reading(ledger) as connection:
        query = sa.select(set_aside.c.code).order_by(set_aside.c.segment, set_aside.c.offset_bytes)
        return list(connection.scalars(query))


def hours(ledger: Engine) -> list[sa.Row[Any]]:
    with reading(ledger) as connection:
        order = [usage_hours.c.hour, usage_hours.c.user_id]
        return list(connection.execute(sa.select(usage_hours).order_by(*order)))


def test_an_event_is_stored_as_it_was_journaled(ledger: Engine, tmp_path: Path) -> None:
    event = an_event(prompt_prefix="很好\n'; drop table", cached_tokens=7)
    record = event.to_record()
    record["data"]["audio_tokens"] = 3
    write_segment(tmp_path, [orjson.dumps(record)])
    assert ingest(ledger, tmp_path, ZONE).stored == 1
    with reading(ledger) as connection:
        row = connection.execute(sa.select(usage_events)).one()
    assert (row.id, row.user_id, row.day, row.time) == (event.id, "user-a", DAY, NOON)
    assert (row.prompt_tokens, row.cached_tokens, row.completion_tokens) == (100, 7, 20)
    assert (row.prompt_prefix.decode(), row.extra) == (
        "很好\n'; drop table",
        '{"data":{"audio_tokens":3}}',
    )


def test_reading_again_stores_nothing_twice(ledger: Engine, tmp_path: Path) -> None:
    write_segment(tmp_path, [an_event() for _ in range(5)])
    assert ingest(ledger, tmp_path, ZONE).stored == 5
    assert ingest(ledger, tmp_path, ZONE).read == 0
    write_segment(tmp_path, [an_event()])
    assert ingest(ledger, tmp_path, ZONE).stored == 1


def test_an_event_delivered_twice_is_counted_once(ledger: Engine, tmp_path: Path) -> None:
    event = an_event()
    write_segment(tmp_path, [event, event])
    write_segment(tmp_path, [event], name="2.jsonl")
    result = ingest(ledger, tmp_path, ZONE)
    assert (result.stored, result.duplicates, result.set_aside) == (1, 2, {})
    [hour] = hours(ledger)
    assert (hour.requests, hour.prompt_tokens, hour.completion_tokens) == (1, 100, 20)


def test_a_known_id_with_another_content_is_set_aside_and_the_first_stands(
    ledger: Engine, tmp_path: Path
) -> None:
    event = an_event()
    forged = replace(event, prompt_tokens=1)
    write_segment(tmp_path, [event, forged])
    result = ingest(ledger, tmp_path, ZONE)
    write_segment(tmp_path, [forged], name="2.jsonl")  # ingesters are free to begin with any segment
    result.add(ingest(ledger, tmp_path, ZONE))
    assert (result.stored, result.set_aside) == (1, {"conflicting_duplicate": 2})
    with reading(ledger) as connection:
        assert connection.scalar(sa.select(usage_events.c.prompt_tokens)) == 100
        assert orjson.loads(connection.scalars(sa.select(set_aside.c.raw)).first() or b"")["id"] == event.id


def test_what_is_no_event_is_set_aside_and_the_rest_goes_on(ledger: Engine, tmp_path: Path) -> None:
    negative = an_event(prompt_tokens=-1)
    write_segment(tmp_path, [b"{", b"", b"\xff\xfe", b"[]", b"{}", negative, an_event()])
    result = ingest(ledger, tmp_path, ZONE)
    assert result.stored == 1
    assert set_aside_codes(ledger) == [
        "not_json", "not_json", "not_json", "not_an_object", "unknown_type", "invalid_count",
    ]  # fmt: skip


def test_lines_that_a_living_writer_has_not_committed_are_left_for_the_next_run(
    ledger: Engine, tmp_path: Path
) -> None:
    first, late = an_event(), an_event()
    whole = orjson.dumps(late.to_record())
    segment = write_segment(tmp_path, [first, committed(1).rstrip()], end=whole[:50])
    with segment.open("ab", buffering=0) as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        assert ingest(ledger, tmp_path, ZONE).stored == 1
        writer.write(whole[50:] + b"\n")
        assert ingest(ledger, tmp_path, ZONE).read == 0
        writer.write(committed(1))
        assert ingest(ledger, tmp_path, ZONE).stored == 1
    assert stored_ids(ledger) == sorted([first.id, late.id])


def test_lines_that_were_refused_are_never_stored(ledger: Engine, tmp_path: Path) -> None:
    kept = an_event()
    write_segment(tmp_path, [kept, committed(1).rstrip(), an_event(), b"{torn", REFUSED.rstrip()])
    assert ingest(ledger, tmp_path, ZONE).read == 1
    assert stored_ids(ledger) == [kept.id]


def test_a_segment_that_was_altered_is_named_and_the_others_are_stored(
    ledger: Engine, tmp_path: Path
) -> None:
    write_segment(tmp_path, [an_event(), committed(2).rstrip()], name="1.jsonl")
    write_segment(tmp_path, [an_event(), committed(1).rstrip()], name="2.jsonl")
    with pytest.raises(LedgerError, match=r"1\.jsonl") as refused:
        ingest(ledger, tmp_path, ZONE)
    assert refused.value.code == "journal_damaged"
    assert len(stored_ids(ledger)) == 1


def test_ingesters_that_share_the_ledger_set_conflicts_aside_provably(ledger: Engine, tmp_path: Path) -> None:
    events = [an_event() for _ in range(30)]
    write_segment(tmp_path, events, name="0.jsonl")
    ingest(ledger, tmp_path, ZONE)
    for number in range(1, 5):
        write_segment(
            tmp_path, [replace(event, user=f"forger-{number}") for event in events], f"{number}.jsonl"
        )
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: ingest(ledger, tmp_path, ZONE), range(4)))
    assert sum(result.set_aside.get("conflicting_duplicate", 0) for result in results) == 120
    assert sum(result.stored for result in results) == 0
    with reading(ledger) as connection:
        verify(connection)


def test_a_line_that_a_dead_writer_tore_is_set_aside(ledger: Engine, tmp_path: Path) -> None:
    write_segment(tmp_path, [an_event()], end=b'{"id": "half')
    assert ingest(ledger, tmp_path, ZONE).set_aside == {"torn_line": 1}
    assert set_aside_codes(ledger) == ["torn_line"]
    assert ingest(ledger, tmp_path, ZONE).read == 0


def test_batches_end_at_lines(ledger: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(billing.chunks, "CHUNK_BYTES", 700)  # a line and a bit
    events = [an_event() for _ in range(20)]
    write_segment(tmp_path, events, end=b"torn")
    result = ingest(ledger, tmp_path, ZONE)
    assert (result.stored, result.set_aside) == (20, {"torn_line": 1})
    assert stored_ids(ledger) == sorted(e.id for e in events)


def test_a_crash_in_mid_batch_leaves_the_offset_with_the_rows(
    ledger: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_segment(tmp_path, [an_event() for _ in range(3)])
    with monkeypatch.context() as broken:
        broken.setattr(billing.store, "put_aside", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ingest(ledger, tmp_path, ZONE)
    assert stored_ids(ledger) == []
    assert ingest(ledger, tmp_path, ZONE).stored == 3


def test_ingesters_side_by_side_count_once(ledger_url: str, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    events = [an_event(user=f"user{n % 7}") for n in range(400)]
    for number in range(4):  # every event in two segments
        half = events[number % 2 :: 2]
        write_segment(journal, half[:: 1 if number < 2 else -1], name=f"{number}.jsonl")

    def run(_number: int) -> IngestResult:
        engine = open_ledger(ledger_url, "Asia/Shanghai")
        try:
            return ingest(engine, journal, ZONE)
        finally:
            engine.dispose()

    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(run, range(4)))
    assert sum(r.stored for r in results) == 400
    assert sum(r.duplicates for r in results) == 400
    engine = open_ledger(ledger_url, "Asia/Shanghai")
    assert stored_ids(engine) == sorted(e.id for e in events)
    with reading(engine) as connection:
        assert connection.scalar(sa.select(sa.func.sum(usage_hours.c.requests))) == 400
    engine.dispose()


def test_an_event_from_the_future_is_set_aside_and_a_clock_ahead_by_hours_is_not(
    ledger: Engine, tmp_path: Path
) -> None:
    now = datetime.now(timezone.utc)
    write_segment(tmp_path, [an_event(time=now + timedelta(hours=h)) for h in (25, 23, -24 * 365 * 9)])
    result = ingest(ledger, tmp_path, ZONE)
    assert (result.stored, result.set_aside) == (2, {"future_time": 1})


@settings(max_examples=25)
@given(st.data())
def test_aggregates_equal_the_events_under_any_order_split_and_duplication(
    sqlite_template: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    minutes = data.draw(st.lists(st.integers(-3 * 1440, 0), min_size=1, max_size=30))
    events = [an_event(time=NOON + timedelta(minutes=m), user=f"u{m % 3}", prompt_tokens=-m) for m in minutes]
    delivered = data.draw(st.permutations(events + data.draw(st.lists(st.sampled_from(events), max_size=10))))
    cut = data.draw(st.integers(0, len(delivered)))
    folder = tmp_path_factory.mktemp("property")
    with copy_of(sqlite_template, folder) as url:
        ledger = forgetful(open_ledger(url, TIME_ZONE))
    write_segment(folder / "journal", delivered[:cut])
    ingest(ledger, folder / "journal", ZONE)
    write_segment(folder / "journal", delivered[cut:])
    write_segment(folder / "journal", delivered, name="again.jsonl")
    ingest(ledger, folder / "journal", ZONE)

    expected: Counter[str] = Counter()
    for event in events:
        expected[event.user] += event.prompt_tokens
    found: Counter[str] = Counter()
    kept = hours(ledger)
    for row in kept:
        found[row.user_id] += row.prompt_tokens
    assert found == expected
    with writing(ledger) as connection:
        for day in {row.day for row in kept}:
            rebuild_day(connection, day)
    assert hours(ledger) == kept
    ledger.dispose()


def test_a_day_may_have_more_batches_than_a_statement_takes_parameters(postgres_url: str) -> None:
    ledger = open_ledger(postgres_url, "Asia/Shanghai")
    bring(ledger, [an_event(), an_event(user="user-b")])
    number = sa.func.generate_series(2, 66_000).column_valued("number")
    with writing(ledger) as connection:
        _, *batch = connection.execute(sa.select(event_batches)).one()
        columns = list(event_batches.c)
        same = [sa.literal(value, column.type) for value, column in zip(batch, columns[1:], strict=True)]
        connection.execute(event_batches.insert().from_select(columns, sa.select(number, *same)))
        assert rebuild_day(connection, DAY) == 2
        with pytest.raises(AuditError, match="batch 2 of"):  # the first without its events
            verify_events(connection, DAY)
    ledger.dispose()
