"""The contract between quotas and the ledger, held against the real ledger: these tests may know billing."""

import fcntl
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy.engine import Engine

from billing.aggregates import roll_up_now
from billing.ingest import ingest, store_journal
from billing.ledger import open_ledger, writing
from billing.tables import usage_events
from serving.quotas import start
from serving.quotas.past import Past, read_past
from tallybook.segments import REFUSED
from tests.apis import running_app
from tests.billing.factories import ZONE, an_event, write_segment
from tests.modelservers import wait_until

NOW = datetime(2026, 11, 21, 12, tzinfo=ZONE)
YESTERDAY, LAST_MONTH = NOW - timedelta(days=1), NOW - timedelta(days=21)
TOKENS = 120  # of an event of the factory


@pytest.fixture
def ledger(access_url: str) -> Iterator[Engine]:
    """An empty ledger, on SQLite and on PostgreSQL."""
    engine = open_ledger(access_url, "Asia/Shanghai")
    yield engine
    engine.dispose()


def past(url: str, journal: Path, now: datetime = NOW) -> Past:
    return read_past(url, journal, ZONE, now.astimezone(timezone.utc))


def told(found: Past) -> tuple[dict[str, int], dict[str, int]]:
    assert found.problem is None
    return dict(found.users), dict(found.projects)


def test_ledger_and_journal_together_tell_what_was_used(
    ledger: Engine, access_url: str, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    events = [
        an_event(time=NOW),
        an_event(time=NOW, user="user-b", cached_tokens=50, reasoning_tokens=5),
        an_event(time=YESTERDAY, project="other"),
        an_event(time=LAST_MONTH),
    ]
    expected = {"user-a": TOKENS, "user-b": TOKENS}, {"search": 2 * TOKENS, "other": TOKENS}
    segment = write_segment(journal, events)
    assert told(past(access_url, journal)) == expected  # in the journal alone
    store_journal(ledger, journal, ZONE)
    assert told(past(access_url, journal)) == expected  # in the ledger, and not yet in its hours
    roll_up_now(ledger)
    assert told(past(access_url, journal)) == expected  # in the hours
    with writing(ledger) as connection:
        connection.execute(usage_events.delete())
    assert told(past(access_url, journal)) == expected  # the rows dropped, the hours kept
    with segment.open("ab") as file:
        file.write(REFUSED)
    write_segment(journal, [an_event(time=NOW)], name="2.jsonl")
    ingest(ledger, journal, ZONE)
    write_segment(journal, [an_event(time=NOW, user="user-b")], name="2.jsonl")
    users, projects = told(past(access_url, journal))
    assert users == {"user-a": 2 * TOKENS, "user-b": 2 * TOKENS}
    assert projects == {"search": 4 * TOKENS, "other": TOKENS}
    assert told(past(access_url, journal, NOW + timedelta(days=1)))[0] == {}


def test_only_what_a_reader_believes_counts_and_each_event_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'none.db'}"
    event = an_event(time=NOW)
    write_segment(
        tmp_path, [event, event, b"no json", b"{}", b'{"type":"tallybook.usage.v1"}'], end=b'{"torn'
    )
    other = an_event(time=NOW).to_record()
    other["time"] = NOW.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    import orjson

    refused = orjson.dumps(an_event(time=NOW).to_record())
    write_segment(
        tmp_path, [orjson.dumps(other), b'{"journal":"committed","events":1}', refused], name="2.jsonl"
    )
    write_segment(tmp_path, [REFUSED.strip()], name="2.jsonl")
    assert told(past(url, tmp_path)) == ({"user-a": 2 * TOKENS}, {"search": 2 * TOKENS})
    with (tmp_path / "3.jsonl").open("wb") as file:  # a writer that lives, and has not committed
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(orjson.dumps(an_event(time=NOW).to_record()) + b"\n")
        file.flush()
        assert told(past(url, tmp_path))[0] == {"user-a": 2 * TOKENS}
    assert not (tmp_path / "none.db").exists()


def test_a_ledger_without_tables_has_nothing_yet(access_url: str, tmp_path: Path) -> None:
    if access_url.startswith("sqlite"):
        (tmp_path / "access.db").touch()
    assert told(past(access_url, tmp_path / "journal")) == ({}, {})


def test_a_damaged_segment_is_counted_up_to_the_damage(tmp_path: Path) -> None:
    write_segment(tmp_path, [an_event(time=NOW), b'{"journal":"committed","events":7}'])
    write_segment(tmp_path, [an_event(time=NOW)], name="2.jsonl")
    assert told(past(f"sqlite:///{tmp_path / 'none.db'}", tmp_path))[0] == {"user-a": TOKENS}


def test_an_api_begins_with_what_was_used(tmp_path: Path) -> None:
    now = datetime.now(timezone.utc)
    write_segment(tmp_path / "journal", [an_event(time=now, project="default")])
    with running_app(tmp_path, quota_user_day_tokens=TOKENS + 1) as api:
        refused = api.analyze()
        assert (refused.status_code, refused.json["error"]["code"]) == (429, "quota_user_day")
        assert int(refused.headers["Retry-After"]) > 1
        assert api.events() == [an_event(id=api.events()[0].id, time=now, project="default")]


def test_an_api_whose_ledger_is_away_begins_with_the_journal_and_counts_the_rest_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "RETRY_SECONDS", 0.02)
    now = datetime.now(timezone.utc)
    write_segment(tmp_path / "journal", [an_event(time=now, project="default")])
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    (tmp_path / "ledger.db").write_bytes(b"no database" * 100)
    with running_app(tmp_path, ledger_url=url, quota_user_day_tokens=3 * TOKENS) as api:
        problem = api.services.quotas.problem()
        assert problem is not None
        assert problem.startswith("the ledger can't be read, so only the journal is counted")
        assert api.analyze().status_code == 200
        other = tmp_path / "elsewhere"
        write_segment(other, [an_event(time=now, project="default") for _ in range(2)], name="other.jsonl")
        brought = open_ledger(f"sqlite:///{tmp_path / 'brought.db'}", "Asia/Shanghai")
        ingest(brought, other, ZONE)
        brought.dispose()
        (tmp_path / "brought.db").replace(tmp_path / "ledger.db")
        wait_until(lambda: api.services.quotas.problem() is None)
        assert api.analyze().status_code == 429


def test_a_quota_is_never_exceeded_by_analyze_to_the_token(tmp_path: Path) -> None:
    limit = 500
    with running_app(tmp_path, quota_user_day_tokens=limit) as api:
        statuses = [api.analyze("hotel").status_code for _ in range(60)]
        assert set(statuses) == {200, 429}
        used = sum(event.total_tokens for event in api.events())
        assert used <= limit
        found = api.services.quotas.standing(api.services.gatekeeper.identify(
            {"REMOTE_ADDR": "127.0.0.1", "HTTP_X_USER_ID": "user-a"}
        ))["user_day_tokens"]  # fmt: skip
        assert (found.used, found.reserved) == (used, 0)
