from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import orjson
import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from sqlalchemy.engine import Engine

from billing import chain
from billing.acts import find, recent
from billing.audit import verify
from billing.audit_cli import audit
from billing.errors import AuditError
from billing.ingest import ingest
from billing.ledger import open_ledger, reading, writing
from billing.store import retry_set_aside
from billing.tables import acts as known_acts
from billing.tables import audit_records, set_aside
from tallybook import acts
from tallybook.acts import Act
from tests.billing.factories import ZONE, an_event, write_segment

NOW = datetime.now(timezone.utc)


def an_act(number: int = 1) -> Act:
    return Act(source="tests", who="anna", kind="key.created", details={"key": f"k{number}"}, time=NOW)


def line(act: Act) -> bytes:
    return orjson.dumps(act.to_record())


def chained(ledger: Engine) -> list[str]:
    with reading(ledger) as connection:
        return [body["id"] for _, kind, body in chain.records(connection) if kind == "act"]


def codes(ledger: Engine) -> list[str]:
    with reading(ledger) as connection:
        return list(connection.scalars(sa.select(set_aside.c.code).order_by(set_aside.c.offset_bytes)))


def test_acts_among_events_are_chained_once_each(ledger: Engine, tmp_path: Path) -> None:
    first, second = an_act(1), an_act(2)
    write_segment(tmp_path, [an_event(), line(first), an_event(), line(second), line(first)])
    result = ingest(ledger, tmp_path, ZONE)
    assert (result.stored, result.acts, result.duplicates, result.read) == (2, 2, 1, 5)
    acts.record(tmp_path, second)
    again = ingest(ledger, tmp_path, ZONE)
    assert (again.acts, again.duplicates) == (0, 1)
    assert chained(ledger) == [first.id, second.id]
    with reading(ledger) as connection:
        assert verify(connection).records == 2
        found = find(connection, second.id)
        assert found is not None
        assert found.number == 2
        assert found.body == {
            "id": second.id, "source": "tests", "time": NOW.isoformat(timespec="microseconds"), "who": "anna",
            "kind": "key.created", "details": {"key": "k2"},
        }  # fmt: skip
        assert [act.body["id"] for act in recent(connection, 1)] == [second.id]


def test_an_act_with_a_known_id_and_another_content_is_set_aside(ledger: Engine, tmp_path: Path) -> None:
    act = an_act()
    write_segment(tmp_path, [line(act), line(replace(act, who="mallory"))])
    assert ingest(ledger, tmp_path, ZONE).set_aside == {"conflicting_duplicate": 1}
    assert chained(ledger) == [act.id]


def test_what_is_no_act_is_set_aside_with_its_reason(ledger: Engine, tmp_path: Path) -> None:
    unfit = an_act().to_record() | {"subject": ""}
    other = an_act().to_record() | {"type": "tallybook.other.v1"}
    ahead = replace(an_act(), time=NOW + timedelta(days=2))
    write_segment(tmp_path, [orjson.dumps(unfit), orjson.dumps(other), line(ahead), b"no json"])
    ingest(ledger, tmp_path, ZONE)
    assert codes(ledger) == ["invalid_text", "unknown_type", "future_time", "not_json"]
    assert chained(ledger) == []
    later = retry_set_aside(ledger, ZONE, NOW + timedelta(days=1, minutes=1))
    assert (later.acts, chained(ledger)) == (1, [ahead.id])
    assert codes(ledger) == ["invalid_text", "unknown_type", "not_json"]
    with reading(ledger) as connection:
        verify(connection)


def test_ingesters_side_by_side_chain_each_act_once(ledger: Engine, tmp_path: Path) -> None:
    made = [an_act(n) for n in range(12)]
    for number, act in enumerate(made):
        write_segment(tmp_path, [an_event(), line(act), line(made[0])], name=f"{number:02}.jsonl")
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: ingest(ledger, tmp_path, ZONE), range(4)))
    assert sum(result.acts for result in results) == 12
    assert sum(result.stored for result in results) == 12
    assert sorted(chained(ledger)) == sorted(act.id for act in made)
    with reading(ledger) as connection:
        verify(connection)


def test_an_act_that_was_altered_or_forgotten_is_found(sqlite_ledger: Engine, tmp_path: Path) -> None:
    act = an_act()
    write_segment(tmp_path, [line(act)])
    ingest(sqlite_ledger, tmp_path, ZONE)
    for change, told in [
        (known_acts.update().values(content_sha256=b"x"), f"act {act.id}: .* could be chained again"),
        (known_acts.update().values(id="x"), f"act {act.id}: .* could be chained again"),
        (known_acts.insert().values(id="x", content_sha256=b"x"), "act x: the audit chain does not hold it"),
        (known_acts.delete(), f"act {act.id}: .* could be chained again"),
        (audit_records.update().values(body="{}"), "was altered"),
    ]:
        with writing(sqlite_ledger) as connection:
            connection.execute(change)
            with pytest.raises(AuditError, match=told):
                verify(connection)
            connection.rollback()


def test_the_audit_shows_acts(sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALLYBOOK_LEDGER_URL", sqlite_url)
    act = an_act()
    write_segment(tmp_path / "journal", [line(act)])
    ingest(open_ledger(sqlite_url, "Asia/Shanghai"), tmp_path / "journal", ZONE)
    listed = CliRunner().invoke(audit, ["acts"]).output
    assert listed.split()[1:] == ["key.created", "anna", act.id]
    shown = CliRunner().invoke(audit, ["show", act.id]).output
    assert "who                          anna" in shown
    assert "key                          k1" in shown
    assert "It is audit record 1." in shown
    assert "unknown_request" in CliRunner().invoke(audit, ["show", "none"]).output
