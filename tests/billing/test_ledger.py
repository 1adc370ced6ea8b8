from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy.engine import Engine

import billing.alerts.tables
import billing.ledger
from billing.bulk import insert_rows
from billing.errors import LedgerError
from billing.ledger import lock_ledger, open_ledger, reading, share_ledger, writing
from billing.lines import COLUMNS, Rater, make_lines
from billing.offsets import prove_offsets
from billing.owing import Usage
from billing.prices.tariff import Tariff
from billing.tables import bill_days, bill_lines, journal_offsets, journal_reads, metadata, set_aside
from tallybook.database import connect
from tests.billing.conftest import new_database


@pytest.fixture(params=["sqlite", "postgresql"])
def nothing_yet(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a ledger that nobody has opened: no file, or a database without tables."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'ledger.db'}"
    else:
        with new_database(request.getfixturevalue("postgres_server")) as url:
            yield url


def test_the_migrations_make_the_tables_that_the_code_uses(nothing_yet: str) -> None:
    ledger = open_ledger(nothing_yet, "Asia/Shanghai")
    with reading(ledger) as connection:
        context = MigrationContext.configure(connection, opts={"version_table": "ledger_version"})
        assert compare_metadata(context, metadata) == []
    ledger.dispose()


def test_lines_from_before_they_lost_their_foreign_key_are_kept(nothing_yet: str) -> None:
    ledger = connect(nothing_yet)
    with writing(ledger) as connection:
        config = Config()
        config.set_main_option("script_location", "billing:migrations")
        config.attributes["connection"] = connection
        command.upgrade(config, "0005")
        assert sa.inspect(connection).get_foreign_keys("bill_lines")
        day = date(2026, 11, 21)
        connection.execute(bill_days.insert().values(day=day, state="draft", early=False))
        usage = Usage("anna", "search", "retail", "m", "1", "", "standard", 0, 9, 4, 2, was_unrated=False)
        lines = make_lines(day, day, Rater(Tariff(), day), [usage], defaultdict(int))
        insert_rows(connection, bill_lines, COLUMNS, lines)
        before = connection.execute(sa.select(bill_lines)).all()
    ledger.dispose()
    ledger = open_ledger(nothing_yet, "Asia/Shanghai")
    with reading(ledger) as connection:
        assert connection.execute(sa.select(bill_lines)).all() == before != []
        assert not sa.inspect(connection).get_foreign_keys("bill_lines")
    ledger.dispose()


def test_the_steps_of_a_journal_read_before_they_were_kept_are_as_far_as_batches_tell(
    nothing_yet: str,
) -> None:
    ledger = connect(nothing_yet)
    with writing(ledger) as connection:
        config = Config()
        config.set_main_option("script_location", "billing:migrations")
        config.attributes["connection"] = connection
        command.upgrade(config, "0006")
        for segment, reached in (("1.jsonl", 90), ("2.jsonl", 50)):
            connection.execute(journal_offsets.insert().values(segment=segment, offset_bytes=reached))
        for number, began in enumerate((0, 40), 1):
            connection.execute(
                sa.text(
                    "INSERT INTO event_batches (id, day, segment, offset_bytes, requests, prompt_tokens, "
                    "cached_tokens, completion_tokens, events_root, stored_at, rolled_up) "
                    "VALUES (:id, '2026-11-21', '1.jsonl', :began, 1, 1, 0, 1, '', "
                    "'2026-11-21T00:00:00.000000+00:00', true)"
                ),
                {"id": number, "began": began},
            )
    ledger.dispose()
    ledger = open_ledger(nothing_yet, "Asia/Shanghai")
    with reading(ledger) as connection:
        steps = connection.execute(sa.select(journal_reads).order_by(*journal_reads.c)).all()
        assert steps == [("1.jsonl", 0, 40), ("1.jsonl", 40, 90), ("2.jsonl", 0, 50)]
        prove_offsets(connection, ())
    ledger.dispose()


def test_several_that_open_a_new_ledger_at_once_find_the_same(nothing_yet: str) -> None:
    def tables(_number: int) -> list[str]:
        ledger = open_ledger(nothing_yet, "Asia/Shanghai")
        try:
            with reading(ledger) as connection:
                return sorted(sa.inspect(connection).get_table_names())
        finally:
            ledger.dispose()

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(tables, range(4)))
    assert found == [found[0]] * 4
    assert set(metadata.tables) <= set(found[0])


def test_opening_a_ledger_again_changes_nothing(nothing_yet: str) -> None:
    open_ledger(nothing_yet, "Asia/Shanghai").dispose()
    open_ledger(nothing_yet, "Asia/Shanghai").dispose()


def test_a_ledger_is_not_continued_in_another_time_zone(nothing_yet: str) -> None:
    open_ledger(nothing_yet, "Asia/Shanghai").dispose()
    with pytest.raises(LedgerError) as refused:
        open_ledger(nothing_yet, "Europe/Berlin")
    assert refused.value.code == "time_zone_changed"


@pytest.mark.parametrize("url", ["postgresql+psycopg://u:secret@127.0.0.1:1/none", "nonsense"])
def test_a_ledger_that_cannot_be_opened_is_said_so_without_its_password(url: str) -> None:
    with pytest.raises(LedgerError) as refused:
        open_ledger(url, "Asia/Shanghai")
    assert refused.value.code == "ledger_unavailable"
    assert "secret" not in str(refused.value)


def test_a_ledger_of_a_newer_version_is_said_to_be_one(nothing_yet: str) -> None:
    ledger = open_ledger(nothing_yet, "Asia/Shanghai")
    with writing(ledger) as connection:
        connection.exec_driver_sql("UPDATE ledger_version SET version_num = '9999'")
    ledger.dispose()
    with pytest.raises(LedgerError, match="9999") as refused:
        open_ledger(nothing_yet, "Asia/Shanghai")
    assert refused.value.code == "ledger_newer"


def test_a_file_that_is_no_database_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"no database" * 1000)
    with pytest.raises(LedgerError, match="not a database") as refused:
        open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}", "Asia/Shanghai")
    assert refused.value.code == "ledger_unavailable"


def test_a_database_in_which_nothing_may_be_made_is_said_so(postgres_server: Path) -> None:
    with new_database(postgres_server) as url:
        owner = connect(url)
        role = f"reader_{sa.make_url(url).database}"
        with writing(owner) as connection:
            connection.exec_driver_sql(f"CREATE ROLE {role} LOGIN")
        owner.dispose()
        with pytest.raises(LedgerError, match="permission denied") as refused:
            open_ledger(url.replace("postgres@", f"{role}@"), "Asia/Shanghai")
    assert refused.value.code == "ledger_unavailable"


def test_a_failed_transaction_leaves_nothing(ledger: Engine) -> None:
    row = {"segment": "s", "offset_bytes": 0, "code": "c", "message": "m", "raw": b"r"}
    row["set_aside_at"] = datetime.now(timezone.utc)
    with pytest.raises(ZeroDivisionError), writing(ledger) as connection:  # noqa: PT012
        connection.execute(set_aside.insert().values(row))
        raise ZeroDivisionError
    with reading(ledger) as connection:
        assert connection.execute(sa.select(set_aside)).all() == []


def test_an_ingester_that_hangs_holds_nothing_for_ever(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(billing.ledger, "_HUNG_SECONDS", 1)
    ledger = open_ledger(postgres_url, "Asia/Shanghai")
    with pytest.raises(sa.exc.DBAPIError), writing(ledger) as hung:  # noqa: PT012
        share_ledger(hung)
        with writing(ledger) as closing:
            lock_ledger(closing)  # waits until the other one is rolled back
        hung.execute(sa.select(1))
    ledger.dispose()


def test_moments_come_back_in_utc_and_naive_ones_are_refused(ledger: Engine) -> None:
    moment = datetime(2026, 11, 22, 8, 30, 0, 123456, tzinfo=timezone.utc)
    row = {"segment": "s", "offset_bytes": 0, "code": "c", "message": "m", "raw": b"\x00\xff"}
    with writing(ledger) as connection:
        connection.execute(set_aside.insert().values(set_aside_at=moment, **row))
    with reading(ledger) as connection:
        kept = connection.execute(sa.select(set_aside)).one()
    assert (kept.set_aside_at, kept.raw) == (moment, b"\x00\xff")
    with pytest.raises(sa.exc.StatementError), writing(ledger) as connection:
        connection.execute(set_aside.insert().values(set_aside_at=moment.replace(tzinfo=None), **row))


def test_the_ledgers_folder_is_made(tmp_path: Path) -> None:
    open_ledger(f"sqlite:///{tmp_path / 'new' / 'ledger.db'}", "UTC").dispose()
    assert (tmp_path / "new" / "ledger.db").exists()
